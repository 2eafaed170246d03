"""What encoding subjects costs: seconds and memory, from 1 to 8 references and from 1 to 8 subjects. Random weights of the true sizes.

    COMFYUI_PATH=FOLDER python tests/benchmark_encoding.py [--device cuda] [--threads N] [--repeats N]

CLIP ViT-L/14 and the portrait adapter for SDXL with a wholly fine-tuned image encoder, as released. Finding faces is left out: that is
InsightFace's own time. `again` is the same reference under another name: nothing is encoded.
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
        return embedding / np.linalg.norm(embedding), random.integers(0, 255, (224, 224, 3), dtype="uint8")


def build():
    """(adapter in the host, CLIP_VISION) at the released sizes."""
    import comfy.clip_vision
    import comfy.ops
    import torch

    from mmdiff_core.checkpoints import shapes
    from mmdiff_core.config import PORTRAIT_SDXL
    from mmdiff_core.host.models import LoadedMMDiff
    from mmdiff_core.method.adapter import MMDiffAdapter, SubjectModules
    clip_vision = comfy.clip_vision.ClipVisionModel(str(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json")))
    generator = torch.Generator().manual_seed(0)
    modules = SubjectModules(PORTRAIT_SDXL, ops=comfy.ops.manual_cast)
    for module in (clip_vision.model, modules):
        for parameter in module.parameters():
            parameter.requires_grad_(False).normal_(0, 0.02, generator=generator)
    vision = {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.vision_shapes(PORTRAIT_SDXL).items()}
    adapter = MMDiffAdapter(PORTRAIT_SDXL, modules.eval(), {}, {}, vision, "benchmark", "random adapter")
    return LoadedMMDiff(adapter), clip_vision


def peak_mb(device: str) -> float:
    import torch
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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

    from mmdiff_core.host.encode import encode_subject
    from mmdiff_core.host.models import Encodings
    from mmdiff_core.method.subjects import add_subject
    torch.set_num_threads(args.threads or torch.get_num_threads())
    mmdiff, clip_vision = build()
    faces, pictures = Faces(), torch.rand(max(REFERENCES), 512, 512, 3)

    def encode(images, name: str = "ann", forget: bool = True) -> tuple[float, object]:
        if forget:
            mmdiff.encodings = Encodings()
        begun = time.perf_counter()
        subject = encode_subject(mmdiff, clip_vision, images, faces, name).subject
        return time.perf_counter() - begun, subject

    encode(pictures[:1])
    print("| references of one subject | seconds | again, seconds | tokens | peak of the process, MB |\n| --- | --- | --- | --- | --- |")
    for count in REFERENCES:
        first = [encode(pictures[:count]) for _ in range(args.repeats)]
        again = [encode(pictures[:count], "ben", forget=False)[0] for _ in range(args.repeats)]
        print(f"| {count} | {statistics.median(s for s, _ in first):.2f} | {statistics.median(again):.3f} | {len(first[0][1].tokens)} | "
              f"{peak_mb(args.device):.0f} |", flush=True)
    print("\n| subjects of one reference | seconds | tokens | peak of the process, MB |\n| --- | --- | --- | --- |")
    for count in SUBJECTS:
        mmdiff.encodings, chain, begun = Encodings(), (), time.perf_counter()
        for i in range(count):
            chain = add_subject(chain, encode(pictures[i:i + 1], f"subject {i}", forget=False)[1])
        print(f"| {count} | {time.perf_counter() - begun:.2f} | {sum(len(s.tokens) for s in chain)} | {peak_mb(args.device):.0f} |", flush=True)
    print(f"\n{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
