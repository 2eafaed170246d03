"""The other way to a subject: fine-tuning the whole UNet on it (as DreamBooth), and then sampling
the plain model."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from .setting import TEXT_TOKENS, Scale, make_model
from .timing import say
from .whole import Peak, Whole

RUN = 4  # steps that are run; the first one is not counted
ROWS = 2  # an image of the subject and one of the prior
RATE = 1e-6


@dataclass(frozen=True)
class Tuned:
    """Seconds of one step, of which `steps` are needed, and the most memory above the model's."""

    step: float
    steps: int
    peak: int | None
    dtype: str

    def told(self, whole: Whole) -> str:
        """A sentence on the way to the first image by a fine-tuned model."""
        steps, image = max(whole.arms[0].seconds.items())
        memory = "-" if self.peak is None else f"{self.peak / 1e6:.0f}"
        return (
            f"Fine-tuning the UNet on one subject: {self.step:.2f} s a step of {ROWS} rows "
            f"({self.dtype}, AdamW; median of {RUN - 1} steps), {self.steps} steps and an image of "
            f"{steps} steps: {self.step * self.steps + image:.0f} s to the first image (computed); "
            f"peak above the model {memory} MB"
        )


def attend(_function, *args, **kwargs) -> Tensor:
    """torch's own attention: the host's for CPUs does not go backwards."""
    return attention_pytorch(*args, **kwargs)


def fine_tune(scale: Scale, args: argparse.Namespace) -> Tuned:
    """A few steps of training on a model of its own."""
    say("fine-tuning")
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    seconds: list[float] = []
    with torch.inference_mode(False), torch.enable_grad():
        model = make_model(scale, dtype)
        unet = model.model.diffusion_model.requires_grad_(True)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE)
        batch = random_batch(scale, args.size // 8, unet, dtype)

        def run() -> None:
            seconds.extend(timed_step(unet, optimizer, batch) for _ in range(RUN))

        peak = Peak(args.device).of(run)
    return Tuned(
        statistics.median(seconds[1:]), args.tuning_steps, peak, str(dtype).removeprefix("torch.")
    )


def random_batch(scale: Scale, side: int, unet: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Noisy latents, times, texts and vectors of numbers, as the UNet takes them."""
    device, channels = next(unet.parameters()).device, scale.unet["adm_in_channels"]
    shapes = {
        "x": (ROWS, 4, side, side),
        "context": (ROWS, TEXT_TOKENS, scale.context),
        "y": (ROWS, channels),
    }
    batch = {name: torch.randn(shape).to(device, dtype) for name, shape in shapes.items()}
    return {**batch, "timesteps": torch.full((ROWS,), 500.0, device=device)}


def timed_step(unet: nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    """Seconds of one step of training."""
    begun = time.perf_counter()
    options = {"optimized_attention_override": attend}
    out = unet(**batch, transformer_options=options)
    loss = F.mse_loss(out.float(), torch.zeros_like(out, dtype=torch.float32))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if loss.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
