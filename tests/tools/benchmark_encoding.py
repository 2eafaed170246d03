"""What encoding subjects costs.

Seconds and memory, from 1 to 8 references and from 1 to 8 subjects. Random weights of the true
sizes.

    COMFYUI_PATH=FOLDER python tests/tools/benchmark_encoding.py [--device cuda] [--threads N]

CLIP ViT-L/14 and the portrait adapter for SDXL with a wholly fine-tuned image encoder, as released.
Finding faces is left out: that is InsightFace's own time. `again` is the same reference under
another name: nothing is encoded.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

from benchmark_host import BenchmarkError, use_host

REFERENCES, SUBJECTS = (1, 2, 4, 8), (1, 2, 4, 8)


class Faces:
    """A face of random numbers in every picture."""

    def portrait(self, image, which, label, region=None):
        import numpy as np

        random = np.random.default_rng(len(label))
        embedding = random.normal(size=512).astype("float32")
        return embedding / np.linalg.norm(embedding), random.integers(
            0, 255, (224, 224, 3), dtype="uint8"
        )


def build():
    """(adapter in the host, CLIP_VISION) at the released sizes."""
    import comfy.clip_vision
    import comfy.ops
    import torch

    from mmdiff_core.checkpoints import shapes
    from mmdiff_core.config import PORTRAIT_SDXL
    from mmdiff_core.host.models import LoadedMMDiff
    from mmdiff_core.method.adapter import MMDiffAdapter, SubjectModules

    clip_vision = comfy.clip_vision.ClipVisionModel(
        str(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json"))
    )
    generator = torch.Generator().manual_seed(0)
    modules = SubjectModules(PORTRAIT_SDXL, ops=comfy.ops.manual_cast)
    for module in (clip_vision.model, modules):
        for parameter in module.parameters():
            parameter.requires_grad_(False).normal_(0, 0.02, generator=generator)
    vision = {
        key: torch.randn(shape, generator=generator) * 0.02
        for key, shape in shapes.vision_shapes(PORTRAIT_SDXL).items()
    }
    adapter = MMDiffAdapter(
        PORTRAIT_SDXL, modules.eval(), {}, {}, vision, "benchmark", "random adapter"
    )
    return LoadedMMDiff(adapter), clip_vision


def peak_mb(device: str) -> float:
    import torch

    return (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    try:
        use_host(args.device)
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")
    import torch

    torch.set_num_threads(args.threads or torch.get_num_threads())
    measure = Measure(torch.rand(max(REFERENCES), 512, 512, 3))
    measure.encode(1)
    print_references(measure, args)
    print_subjects(measure, args)
    print(f"\n{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


class Measure:
    """Encodes pictures with the released sizes, and takes the time."""

    def __init__(self, pictures):
        self.pictures, self.faces = pictures, Faces()
        self.mmdiff, self.clip_vision = build()

    def forget(self) -> None:
        from mmdiff_core.host.models import Encodings

        self.mmdiff.encodings = Encodings()

    def encode(self, count: int, name: str = "ann", first: int = 0) -> tuple[float, object]:
        """(seconds, subject) of `count` references."""
        from mmdiff_core.host.encode import encode_subject

        images, begun = self.pictures[first : first + count], time.perf_counter()
        found = encode_subject(self.mmdiff, self.clip_vision, images, self.faces, name)
        return time.perf_counter() - begun, found.subject


def print_references(measure: Measure, args: argparse.Namespace) -> None:
    print("| references of one subject | seconds | again, seconds | tokens | peak, MB |")
    print("| --- | --- | --- | --- | --- |")
    for count in REFERENCES:
        first, again = [], []
        for _ in range(args.repeats):
            measure.forget()
            seconds, subject = measure.encode(count)
            first.append(seconds)
        for _ in range(args.repeats):
            again.append(measure.encode(count, "ben")[0])
        cells = (
            count,
            f"{statistics.median(first):.2f}",
            f"{statistics.median(again):.3f}",
            len(subject.tokens),
            f"{peak_mb(args.device):.0f}",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_subjects(measure: Measure, args: argparse.Namespace) -> None:
    from mmdiff_core.method.subjects import add_subject

    print(
        "\n| subjects of one reference | seconds | tokens | peak, MB |\n| --- | --- | --- | --- |"
    )
    for count in SUBJECTS:
        measure.forget()
        chain, begun = (), time.perf_counter()
        for i in range(count):
            chain = add_subject(chain, measure.encode(1, f"subject {i}", first=i)[1])
        seconds, tokens = time.perf_counter() - begun, sum(len(s.tokens) for s in chain)
        print(f"| {count} | {seconds:.2f} | {tokens} | {peak_mb(args.device):.0f} |", flush=True)


if __name__ == "__main__":
    main()
