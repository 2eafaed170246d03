"""What trains the small world's UNet and text encoder, from scenes and captions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..host import small_world as host
from ..host.frozen_base.encoders import text_states
from ..host.frozen_base.unet_call import training_options
from ..method import losses
from ..small_world import scenes, sizes, sprites
from ..training.example import Example
from ..training.noise import LogNormal, draw_noise

CAPTION_DROPOUT = 0.1
NOISE = LogNormal(median=2.2, spread=0.9, share=0.7)  # where classes and positions are decided


class LayoutHeads(nn.Module):
    """Which class stands at every position, read from the UNet's features during training only.

    The denoising loss says little about the caption at high noise levels; the classes of the
    positions say it plainly, and their gradient reaches the UNet and the text encoder. The heads
    are not exported.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.features: list[Tensor] = []
        blocks = (unet.middle_block[-1], unet.output_blocks[0][-1], unet.output_blocks[-1][-1])
        widths = (2, 2, 1)
        for block in blocks:
            block.register_forward_hook(lambda _m, _i, out: self.features.append(out))
        channels = [width * sizes.UNET["model_channels"] for width in widths]
        self.heads = nn.ModuleList(nn.Conv2d(c, len(sprites.CLASSES) + 1, 1) for c in channels)

    def forward(self, drawn: Sequence[scenes.Scene], masks: Sequence[np.ndarray]) -> Tensor:
        """Mean cross-entropy over positions and heads, of the features of the last forward pass."""
        truth = class_maps(drawn, masks)
        total = torch.zeros(())
        for head, features in zip(self.heads, self.features, strict=True):
            logits = head(features.float())
            wanted = F.adaptive_avg_pool2d(truth, logits.shape[-2:]).to(logits)
            total = total - (wanted * logits.log_softmax(1)).sum(1).mean() / len(self.heads)
        self.features.clear()
        return total


def class_maps(drawn: Sequence[scenes.Scene], masks: Sequence[np.ndarray]) -> Tensor:
    """Scenes and their masks -> [B classes+1 S S]: 1 at the class of each dot, the last is none."""
    maps = torch.zeros(len(drawn), len(sprites.CLASSES) + 1, scenes.SIDE, scenes.SIDE)
    for row, scene, of_scene in zip(maps, drawn, masks, strict=True):
        for placed, mask in zip(scene.placed, of_scene, strict=True):
            row[sprites.CLASSES.index(placed.kind)] += torch.from_numpy(mask).float()
        row[-1] = 1 - row[:-1].sum(0)
    return maps


class UNetTask(nn.Module):
    """Scenes and their captions -> UNet and text encoder, by v-prediction.

    Of the token table only the words that occur are trained.
    """

    def __init__(self, init: Path | None, seed: int, layout_weight: float):
        super().__init__()
        begun = [host.read(init, name) if init else None for name in ("unet", "text")]
        base, self.clip = host.model(begun[0]).model, host.clip(begun[1])
        self.unet = base.diffusion_model.requires_grad_(True)
        self.text = self.clip.cond_stage_model.clip_l.transformer.requires_grad_(True)
        self.text.text_projection.requires_grad_(False)
        table = self.text.get_input_embeddings().weight.requires_grad_(False)
        self.vocabulary = every_token(self.clip)
        self.rows = nn.Parameter(table[self.vocabulary].clone())
        self.layout = LayoutHeads(self.unet)
        self.layout_weight = layout_weight
        self.seed = seed
        self.sigmas = base.model_sampling.sigmas
        self.alphas = 1 / (1 + self.sigmas**2)

    @cache  # noqa: B019  (one task lives as long as its process)
    def ids(self, caption: str) -> tuple[int, ...]:
        tokens = self.clip.tokenize(caption)["l"][0]
        return tuple(self.vocabulary.index(token) for token, _ in tokens)

    def context(self, batch: Sequence[Example], drawn: Sequence[scenes.Scene]) -> Tensor:
        """States of the captions [B TOKENS W]; of one example in ten the caption is dropped."""
        captions = [
            ""
            if np.random.default_rng((self.seed, e.index, 3)).random() < CAPTION_DROPOUT
            else scene.caption
            for e, scene in zip(batch, drawn, strict=True)
        ]
        ids = torch.tensor([self.ids(c) for c in captions], device=self.rows.device)
        return text_states(self.text, F.embedding(ids, self.rows))[0]

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        drawn = [scenes.scene("train", self.seed, e.index) for e in batch]
        shown = [scenes.draw(scene) for scene in drawn]
        pixels = torch.from_numpy(np.stack([image for image, _ in shown])).movedim(-1, 1).float()
        latents = F.pixel_unshuffle(pixels * 2 - 1, sizes.FOLD) * sizes.LATENT_SCALE
        numbers = [e.index for e in batch]
        noise, steps = draw_noise(numbers, latents.shape[1:], len(self.sigmas), self.seed)
        steps = NOISE.replace_steps(steps, numbers, self.sigmas, self.seed)
        alpha = self.alphas[steps].view(-1, 1, 1, 1)
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        v = self.unet(
            a * latents + b * noise,
            steps.float(),
            context=self.context(batch, drawn),
            transformer_options=training_options(latents.device),
        )
        target = losses.denoising_target("v", latents, noise, a, b)
        denoising = losses.denoising_loss(v, target, torch.ones(len(batch))).mean()
        layout = self.layout(drawn, [masks for _, masks in shown])
        loss = denoising + self.layout_weight * layout
        return {"loss": loss, "denoising": denoising.detach(), "layout": layout.detach()}

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Trained weights -> the base's files."""

        def part(prefix: str) -> dict[str, Tensor]:
            chosen = {k: v for k, v in weights.items() if k.startswith(prefix)}
            return {k.removeprefix(prefix): v for k, v in chosen.items()}

        text = part("text.") | {
            "text_projection.weight": self.text.text_projection.weight.detach(),
            "token_rows": weights["rows"],
            "token_ids": torch.tensor(self.vocabulary, dtype=torch.int32),
        }
        return {"unet": part("unet."), "text": text}


def every_token(clip) -> list[int]:
    """The tokens that captions can have, ascending."""
    tokens = set()
    for words in scenes.every_word():
        for chunk in clip.tokenize(words)["l"]:
            tokens |= {token for token, _ in chunk}
    return sorted(tokens)
