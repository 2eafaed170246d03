"""Command: train what the small world's adapter stands on: UNet and text encoder from captions alone, the image encoder, and the
network that reads pictures for the scores.

    python -m mmdiff_core.host.train_base unet   OUT [--steps 8000] [--batch 32] [--rate 8e-4] [--schedule cosine] [--seed 0]
    python -m mmdiff_core.host.train_base vision OUT
    python -m mmdiff_core.host.train_base reader OUT
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m mmdiff_core.host.train_base ...      two processes on a CPU

The first two are frozen afterwards, as SDXL and CLIP are for the paper's adapter. Every number of a run follows from its seed; run it
again with the same OUT to go on. OUT receives the weights as float16 with the run in the header; `--init` begins from such files.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..method import losses
from ..references.pixels import normalise
from ..small_world import references, scenes, score, sizes, sprites
from ..training.example import Example
from ..training.noise import draw_noise
from ..training.run.config import LoopConfig
from ..training.run.errors import RunError
from ..training.run.loop import fit
from ..training.run.report import hardware
from .start import use_comfyui

log = logging.getLogger(__name__)
CAPTION_DROPOUT = 0.1
EMA = 0.999
MIDDLE = 0.75               # share of the examples from the middle noise levels
LARGEST = 7_500_000         # bytes of one file; a larger one is written in parts


@dataclass(frozen=True)
class Numbers:
    """Examples that are numbers: the tasks here draw their pictures themselves."""

    def example(self, index: int) -> Example:
        return Example(torch.empty(0), "", (), index)

    def batch(self, start: int, size: int) -> tuple[Example, ...]:
        return tuple(self.example(i) for i in range(start, start + size))


class UNetTask(nn.Module):
    """Scenes and their captions -> UNet and text encoder, by v-prediction. Of the token table only the words that occur are trained."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        from . import small_world as host
        begun = [host.read(args.init, name) if args.init else None for name in ("unet", "text")]
        base, self.clip = host.model(begun[0]).model, host.clip(begun[1])
        self.unet = base.diffusion_model.requires_grad_(True)
        self.text = self.clip.cond_stage_model.clip_l.transformer.requires_grad_(True)
        self.text.text_projection.requires_grad_(False)
        table = self.text.get_input_embeddings().weight.requires_grad_(False)
        self.vocabulary = sorted({token for words in scenes.every_word() for token, _ in self.clip.tokenize(words)["l"][0]})
        self.rows = nn.Parameter(table[self.vocabulary].clone())
        self.seed = args.seed
        self.alphas = 1 / (1 + base.model_sampling.sigmas ** 2)

    @cache        # noqa: B019  (one task lives as long as its process)
    def ids(self, caption: str) -> tuple[int, ...]:
        return tuple(self.vocabulary.index(token) for token, _ in self.clip.tokenize(caption)["l"][0])

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        from .frozen_base.encoders import text_states
        from .frozen_base.unet_call import training_options
        drawn = [scenes.scene("train", self.seed, e.index) for e in batch]
        dropped = [np.random.default_rng((self.seed, e.index, 3)).random() < CAPTION_DROPOUT for e in batch]
        captions = ["" if drop else s.caption for drop, s in zip(dropped, drawn, strict=True)]
        device = self.rows.device
        latents = F.pixel_unshuffle(pictures(drawn).to(device) * 2 - 1, sizes.FOLD) * sizes.LATENT_SCALE
        noise, steps = draw_noise([e.index for e in batch], latents.shape[1:], len(self.alphas), self.seed, MIDDLE)
        noise, alpha = noise.to(device), self.alphas[steps].to(device).view(-1, 1, 1, 1)
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        context = text_states(self.text, F.embedding(torch.tensor([self.ids(c) for c in captions], device=device), self.rows))[0]
        v = self.unet(a * latents + b * noise, steps.to(device).float(), context=context, transformer_options=training_options(device))
        target = losses.denoising_target("v", latents, noise, a, b)
        return {"loss": losses.denoising_loss(v, target, torch.ones(len(batch), device=device)).mean()}

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Trained weights -> the base's files."""
        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

        text = part("text.") | {"text_projection.weight": self.text.text_projection.weight.detach()}
        text |= {"token_rows": weights["rows"], "token_ids": torch.tensor(self.vocabulary, dtype=torch.int32)}
        return {"unet": part("unet."), "text": text}


class VisionTask(nn.Module):
    """Reference pictures and what is true of them -> the image encoder, by heads that are thrown away."""

    TRAITS = {"kind": sprites.CLASSES, "pattern": sprites.PATTERNS, "eyes": sprites.EYES, "accessory": sprites.ACCESSORIES}

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        from . import small_world as host
        self.encoder = host.clip_vision(host.read(args.init, "vision") if args.init else None).model.requires_grad_(True)
        width = sizes.VISION["projection_dim"]
        outputs = {name: len(values) for name, values in self.TRAITS.items()} | {"hues": 4}
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in outputs.items()})
        self.seed = args.seed

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        from .frozen_base.encoders import vision_states
        rngs = [np.random.default_rng((self.seed, e.index, 5)) for e in batch]
        who = [(str(rng.choice(sprites.CLASSES)), scenes.random_identity(rng, "train")) for rng in rngs]
        pixels = np.stack([references.augmented(rng, *one) for rng, one in zip(rngs, who, strict=True)])
        cls = vision_states(self.encoder, normalise(torch.from_numpy(pixels).movedim(-1, 1)))[0].float()
        terms = {}
        for name, values in self.TRAITS.items():
            truth = torch.tensor([values.index(kind if name == "kind" else getattr(identity, name)) for kind, identity in who])
            logits = self.heads[name](cls)
            terms[name] = F.cross_entropy(logits.float(), truth)
            terms[f"{name}_right"] = (logits.argmax(1) == truth).float().mean()
        angles = torch.tensor([[i.first, i.second] for _, i in who]) * 2 * math.pi
        terms["hues"] = F.mse_loss(self.heads["hues"](cls).float(), torch.cat([angles.sin(), angles.cos()], 1).float())
        loss = sum(terms[name] for name in self.TRAITS) + 4 * terms["hues"]
        return {"loss": loss} | {k: v.detach() for k, v in terms.items()}

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {"vision": {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}}


class ReaderTask(nn.Module):
    """Scenes, noisy too -> the network that tells classes and backgrounds (`small_world.score.Reader`)."""

    NOISE = 0.12

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        from . import small_world as host
        self.reader, self.seed = score.Reader(), args.seed
        if args.init:
            self.reader.load_state_dict({k: v.float() for k, v in host.read(args.init, "reader").items()})

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        drawn = [scenes.scene("train", self.seed + 7, e.index) for e in batch]
        noise, steps = draw_noise([e.index for e in batch], (3, scenes.SIDE, scenes.SIDE), 1000, self.seed)
        counts, background = self.reader(pictures(drawn) + noise * self.NOISE * steps.view(-1, 1, 1, 1) / 1000)
        truths = [score.truth(s) for s in drawn]
        wanted = torch.tensor([[found.get(kind, 0) for kind in sprites.CLASSES] for found, _ in truths])
        places = torch.tensor([tuple(sprites.PLACES).index(place) for _, place in truths])
        told = F.cross_entropy(counts.float().flatten(0, 1), wanted.flatten()) * len(sprites.CLASSES)
        return {
            "loss": told + F.cross_entropy(background.float(), places),
            "counts_right": (counts.argmax(-1) == wanted).all(1).float().mean(),
            "background_right": (background.argmax(1) == places).float().mean(),
        }

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        return {"reader": {k.removeprefix("reader."): v for k, v in weights.items()}}


def pictures(drawn: Sequence[scenes.Scene]) -> Tensor:
    """Scenes -> [B 3 S S] in 0..1, float32."""
    return torch.from_numpy(np.stack([scenes.draw(s)[0] for s in drawn])).movedim(-1, 1).float()


def write(folder: Path, name: str, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """One of the base's files as float16, in parts when it is large; a file appears under its name only when it is whole."""
    halved = {k: (v if v.dtype == torch.int32 else v.detach().half()).cpu().contiguous().clone() for k, v in tensors.items()}
    parts: list[dict[str, Tensor]] = [{}]
    for key, tensor in halved.items():
        if sum(t.nbytes for t in parts[-1].values()) + tensor.nbytes > LARGEST:
            parts.append({})
        parts[-1][key] = tensor
    for number, part in enumerate(parts, 1):
        path = folder / (f"{name}.safetensors" if len(parts) == 1 else f"{name}-{number}.safetensors")
        save_file(part, str(path) + ".part", metadata=dict(header))
        Path(str(path) + ".part").replace(path)


def header_of(folder: Path, name: str) -> dict[str, str]:
    """The header of one of the base's files, or {}."""
    for path in sorted(folder.glob(f"{name}*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}
    return {}


def export_with(task: nn.Module, args: argparse.Namespace):
    """What `fit` calls with the averaged weights: writes the files, with what made them in the header."""
    began = time.time()
    command = f"python -m mmdiff_core.host.train_base {args.what} OUT --steps {args.steps} --batch {args.batch} --rate {args.rate} " \
              f"--optimizer {args.optimizer} --muon-rate {args.muon_rate} --schedule {args.schedule} --seed {args.seed}"

    def export(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> None:
        header = {"made_by": command, "hardware": hardware(), "torch": torch.__version__, **{k: str(v) for k, v in facts.items()}}
        header["minutes"] = f"{(time.time() - began) / 60:.1f} of this process"
        if args.init:
            header["begun_from"] = json.dumps(header_of(args.init, args.what))
        for name, tensors in task.files(weights).items():
            write(path.parent, name, tensors, header)

    return export


# what -> (task, steps, batch, peak rate)
TASKS = {"unet": (UNetTask, 8000, 32, 8e-4), "vision": (VisionTask, 4000, 96, 6e-4), "reader": (ReaderTask, 2000, 64, 1e-3)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.host.train_base", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=sorted(TASKS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, help="examples of one process in one step")
    parser.add_argument("--rate", type=float, help="highest learning rate")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--muon-rate", type=float, default=2.0, help="of matrices and kernels under muon, times --rate")
    parser.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="folder with the files of an earlier run to begin from")
    args = parser.parse_args(argv)
    make, steps, batch, rate = TASKS[args.what]
    args.steps, args.batch, args.rate = args.steps or steps, args.batch or batch, args.rate or rate
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        use_comfyui(cpu=True)
        torch.manual_seed(args.seed)
        task = make(args)
        config = LoopConfig(
            steps=args.steps, batch=args.batch, learning_rate=args.rate, betas=(0.9, 0.99),
            warmup_steps=min(200, args.steps // 10), schedule=args.schedule, final_fraction=0.01, ema_decay=EMA,
            mixed_precision=args.precision, seed=args.seed, save_every=250, keep_last=1, log_every=50, workers=0,
            tracker=None, optimizer=args.optimizer, muon_rate=args.muon_rate,
        )
        report = fit(task, Numbers(), config, args.out, export=export_with(task, args))
    except (ValueError, OSError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
