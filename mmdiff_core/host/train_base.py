"""Command: train the small world's base (UNet and text encoder from captions alone), or its image encoder.

    python -m mmdiff_core.host.train_base unet   OUT [--steps 5000] [--batch 40] [--seed 0]
    python -m mmdiff_core.host.train_base vision OUT [--steps 3000] [--batch 128] [--seed 0]

Both are frozen afterwards: the adapter is trained on them as the paper's is on SDXL and CLIP. Every number of a run follows from
its seed. OUT receives unet.safetensors and text.safetensors, or vision.safetensors, as float16 with the run in the header.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
import time
from functools import lru_cache
from pathlib import Path

from .start import use_comfyui

log = logging.getLogger(__name__)
CAPTION_DROPOUT = 0.1
EMA = 0.999


def provenance(args: argparse.Namespace, started: float) -> dict[str, str]:
    """What made a file, for its header; the run it began from inside it."""
    import torch
    from safetensors import safe_open
    earlier = {}
    if args.init:
        with safe_open(str(args.init / f"{args.what}.safetensors"), framework="pt") as file:
            earlier = {"begun_from": json.dumps(file.metadata() or {})}
    return earlier | {
        "made_by": "python -m mmdiff_core.host.train_base " + f"{args.what} OUT --steps {args.steps} --batch {args.batch} --rate {args.rate} --seed {args.seed}"
                   + (" --init (the run in 'begun_from')" if args.init else ""),
        "seed": str(args.seed), "steps": str(args.steps), "batch": str(args.batch), "minutes": f"{(time.time() - started) / 60:.1f}",
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads", "torch": torch.__version__,
    }


class Ema:
    """Exponential moving average of some parameters, its decay warming up."""

    def __init__(self, parameters, decay: float):
        self.parameters, self.decay, self.count = list(parameters), decay, 0
        self.shadow = [p.detach().clone() for p in self.parameters]

    def update(self) -> None:
        import torch
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        with torch.no_grad():
            torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    def swap(self) -> None:
        """Exchange the parameters with their averages."""
        import torch
        with torch.no_grad():
            for p, s in zip(self.parameters, self.shadow, strict=True):
                kept = p.detach().clone()
                p.copy_(s)
                s.copy_(kept)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate factor: linear warm-up, then half a cosine to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def loop(args, parameters, loss_of, save) -> None:
    """AdamW on `loss_of(step)`; `save()` at the end and every 500 steps, with the averaged weights in place."""
    import torch
    parameters = list(parameters)
    ema = Ema(parameters, EMA)
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    recent, began = [], time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * schedule(step, args.steps, 200)
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} at step {step}; try a lower --rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update()
        recent = [*recent[-99:], loss.item()]
        if step % 50 == 49:
            rate = (step + 1) / (time.time() - began)
            log.info("step %d  loss %.4f  %.2f steps/s  %.1f min left", step + 1, sum(recent) / len(recent), rate,
                     (args.steps - step - 1) / rate / 60)
        if step % 500 == 499 or step + 1 == args.steps:
            ema.swap()
            save()
            ema.swap()


def write(path: Path, tensors, header: dict[str, str]) -> None:
    import torch
    from safetensors.torch import save_file
    part = path.with_suffix(".part")
    save_file({k: (v if v.dtype == torch.int32 else v.half()).contiguous().clone() for k, v in tensors.items()}, str(part), metadata=header)
    part.replace(path)


def train_unet(args: argparse.Namespace) -> None:
    """Scenes and their captions -> UNet and text encoder."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from ..small_world import scenes, sizes
    from . import small_world as host
    from .differentiable import text_states
    torch.manual_seed(args.seed)
    begun = [host.read(args.init, name) if args.init else None for name in ("unet", "text")]
    base, clip = host.model(begun[0]).model, host.clip(begun[1])
    unet, text = base.diffusion_model.requires_grad_(True), clip.cond_stage_model.clip_l.transformer.requires_grad_(True)
    text.text_projection.requires_grad_(False)
    table = text.get_input_embeddings().weight.requires_grad_(False)
    vocabulary = sorted({token for caption in scenes.every_word() for token, _ in clip.tokenize(caption)["l"][0]})
    number = {token: i for i, token in enumerate(vocabulary)}
    rows = torch.nn.Parameter(table[vocabulary].clone())        # only the words that occur: the rest of the table stays untouched
    sigmas = base.model_sampling.sigmas
    alphas = 1 / (1 + sigmas ** 2)

    @lru_cache(maxsize=None)
    def ids(caption: str) -> tuple[int, ...]:
        return tuple(number[token] for token, _ in clip.tokenize(caption)["l"][0])

    def loss_of(step: int) -> torch.Tensor:
        numbers = range(step * args.batch, (step + 1) * args.batch)
        rng = np.random.default_rng((args.seed, step))
        drawn = [scenes.scene("train", args.seed, i) for i in numbers]
        captions = ["" if rng.random() < CAPTION_DROPOUT else s.caption for s in drawn]
        pixels = torch.from_numpy(np.stack([scenes.draw(s)[0] for s in drawn])).movedim(-1, 1) * 2 - 1
        latents = F.pixel_unshuffle(pixels, sizes.FOLD) * sizes.LATENT_SCALE
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(args.seed * 10**9 + step))
        t = torch.from_numpy((np.arange(args.batch) + rng.random(args.batch)) / args.batch * len(sigmas)).long()
        a, b = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            context = text_states(text, F.embedding(torch.tensor([ids(c) for c in captions]), rows))[0]
            v = unet(a * latents + b * noise, t.float(), context=context, transformer_options={})
        return (v.float() - (a * noise - b * latents)).square().mean()

    started = time.time()

    def save() -> None:
        header = provenance(args, started)
        write(args.out / "unet.safetensors", unet.state_dict(), header)
        state = text.state_dict()
        del state["text_model.embeddings.token_embedding.weight"]
        state["token_rows"], state["token_ids"] = rows.detach(), torch.tensor(vocabulary, dtype=torch.int32)
        write(args.out / "text.safetensors", state, header)

    trained = [p for p in [rows, *unet.parameters(), *text.parameters()] if p.requires_grad]
    log.info("%.2f M parameters in the UNet, %.2f M in the text encoder without its token table",
             sum(p.numel() for p in unet.parameters()) / 1e6, (sum(p.numel() for p in text.parameters()) - table.numel()) / 1e6)
    loop(args, trained, loss_of, save)


def train_vision(args: argparse.Namespace) -> None:
    """Reference pictures and what is true of them -> the image encoder, by heads that are thrown away."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from ..small_world import references, scenes, sizes, sprites
    from ..vision import normalise
    from . import small_world as host
    from .differentiable import vision_states
    torch.manual_seed(args.seed)
    encoder = host.clip_vision().model.requires_grad_(True)
    traits = {"kind": sprites.CLASSES, "pattern": sprites.PATTERNS, "eyes": sprites.EYES, "accessory": sprites.ACCESSORIES}
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(sizes.VISION["projection_dim"], len(v)) for name, v in traits.items()})
    heads["hues"] = torch.nn.Linear(sizes.VISION["projection_dim"], 4)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng((args.seed, step, 5))
        who = [(str(rng.choice(sprites.CLASSES)), scenes.random_identity(rng, "train")) for _ in range(args.batch)]
        pixels = torch.from_numpy(np.stack([references.augmented(rng, kind, identity) for kind, identity in who])).movedim(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            cls = vision_states(encoder, normalise(pixels))[0].float()
        loss = cls.new_zeros(())
        for name, values in traits.items():
            truth = torch.tensor([values.index(kind if name == "kind" else getattr(identity, name)) for kind, identity in who])
            loss = loss + F.cross_entropy(heads[name](cls), truth)
        angles = torch.tensor([[i.first, i.second] for _, i in who]) * 2 * math.pi
        return loss + 4 * F.mse_loss(heads["hues"](cls), torch.cat([angles.sin(), angles.cos()], 1).float())

    started = time.time()
    loop(args, [*encoder.parameters(), *heads.parameters()], loss_of,
         lambda: write(args.out / "vision.safetensors", encoder.state_dict(), provenance(args, started)))


DEFAULTS = {"unet": (train_unet, 5000, 40, 8e-4), "vision": (train_vision, 3000, 128, 6e-4)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.host.train_base", description=__doc__)
    parser.add_argument("what", choices=sorted(DEFAULTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="folder with the files of an earlier run to begin from")
    args = parser.parse_args(argv)
    train, steps, batch, rate = DEFAULTS[args.what]
    args.steps, args.batch, args.rate = args.steps or steps, args.batch or batch, args.rate or rate
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
