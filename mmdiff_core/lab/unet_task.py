"""What trains the small world's UNet and text encoder, from scenes and captions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from ..small_world import descriptions, scenes, sizes, sprites
from ..training.example import Example
from ..training.noise import LogNormal, draw_noise
from .noun_maps import NounMaps
from .told import ToldHeads

CAPTION_DROPOUT = 0.1
ONLY_NOUNS = 0.5  # share of the captions whose traits the UNet sees in the nouns' states alone
SUBJECTS = 1.5  # how much more a subject's positions count than the background's
FOUND = 0.05  # weight of the loss that brings the attention maps to the nouns
TOLD = 0.1  # weight of the loss that keeps the traits in the nouns' states
TRAITS = 1.0  # weight of the traits' loss, in units of the classes'
NOISE = LogNormal(median=2.2, spread=0.9, share=0.6)  # where classes and positions are decided


GROUPS = {"class": len(sprites.CLASSES)} | {t: len(w) for t, w in sprites.WORDS.items()}


class LayoutHeads(nn.Module):
    """Which class stands at every position, and with which traits, read from the UNet's features
    during training only.

    The denoising loss says little about the caption at high noise levels; the classes and traits
    of the positions say it plainly, and their gradient reaches the UNet and the text encoder. The
    heads are not exported.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.features: list[Tensor] = []
        blocks = (unet.middle_block[-1], unet.output_blocks[0][-1], unet.output_blocks[-1][-1])
        widths = (2, 2, 1)
        for block in blocks:
            block.register_forward_hook(lambda _m, _i, out: self.features.append(out))
        channels = [width * sizes.UNET["model_channels"] for width in widths]
        outputs = sum(GROUPS.values()) + 1  # the last one is "nothing stands here"
        self.heads = nn.ModuleList(nn.Conv2d(c, outputs, 1) for c in channels)

    def forward(
        self, drawn: Sequence[scenes.Scene], masks: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the classes over positions and heads, and of the traits over the
        subjects' positions, both of the features of the last forward pass."""
        truth = layout_maps(drawn, masks)
        classes, traits = torch.zeros(()), torch.zeros(())
        for head, features in zip(self.heads, self.features, strict=True):
            # normed, so that a step of the optimizer moves the logits alike at every layer
            normed = F.layer_norm(features.float().movedim(1, -1), features.shape[1:2])
            logits = head(normed.movedim(-1, 1))
            wanted = F.adaptive_avg_pool2d(truth, logits.shape[-2:]).to(logits)
            of_class, *of_traits, nothing = split_groups(logits)
            true_class, *true_traits, true_nothing = split_groups(wanted)
            standing = torch.cat([of_class, nothing], 1).log_softmax(1)
            true_standing = torch.cat([true_class, true_nothing], 1)
            classes = classes - (true_standing * standing).sum(1).mean()
            covered = true_class.sum().clamp_min(1e-6)
            for one, true in zip(of_traits, true_traits, strict=True):
                traits = traits - (true * one.log_softmax(1)).sum() / covered / len(of_traits)
        self.features.clear()
        return classes / len(self.heads), traits / len(self.heads)


def split_groups(maps: Tensor) -> tuple[Tensor, ...]:
    """Maps [B n h w] -> those of the classes, of every trait, and of "nothing"."""
    return maps.split([*GROUPS.values(), 1], 1)


def layout_maps(drawn: Sequence[scenes.Scene], masks: Sequence[np.ndarray]) -> Tensor:
    """Scenes and their masks -> [B n S S]: 1 at the class and the traits of each dot, and at the
    last map where nothing stands."""
    starts = dict(zip(GROUPS, np.cumsum([0, *GROUPS.values()]), strict=False))
    maps = torch.zeros(len(drawn), sum(GROUPS.values()) + 1, scenes.SIDE, scenes.SIDE)
    for row, scene, of_scene in zip(maps, drawn, masks, strict=True):
        for placed, mask in zip(scene.placed, of_scene, strict=True):
            values = {"class": sprites.CLASSES.index(placed.kind)}
            values |= descriptions.traits(placed.identity)
            for group, value in values.items():
                row[starts[group] + value] += torch.from_numpy(mask).float()
        row[-1] = 1 - row[: GROUPS["class"]].sum(0)
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
        self.rows = nn.Parameter(new_words_drawn(table[self.vocabulary].clone(), seed))
        self.layout = LayoutHeads(self.unet)
        self.layout_weight = layout_weight
        self.told = ToldHeads()
        self.nouns = NounMaps(self.unet)
        self.seed = seed
        self.sigmas = base.model_sampling.sigmas
        self.alphas = 1 / (1 + self.sigmas**2)

    @cache  # noqa: B019  (one task lives as long as its process)
    def ids(self, caption: str) -> tuple[int, ...]:
        tokens = self.clip.tokenize(caption)["l"][0]
        return tuple(self.vocabulary.index(token) for token, _ in tokens)

    def context(
        self, batch: Sequence[Example], drawn: Sequence[scenes.Scene]
    ) -> tuple[Tensor, Tensor, list[list[int]]]:
        """States of the captions [B TOKENS W], the loss of the told traits, and the columns of
        the nouns.

        Of one example in ten the caption is dropped. Half of the others are the states of a
        caption without traits, but for the nouns' columns, which come from the caption with
        traits: a subject's image can only change the noun, so the nouns must tell everything.
        """
        told, bare, columns = [], [], []
        for example, scene in zip(batch, drawn, strict=True):
            dropped, moved = np.random.default_rng((self.seed, example.index, 3)).random(2)
            plain = descriptions.plainly(scene)
            captions = ("", "") if dropped < CAPTION_DROPOUT else (scene.caption, plain.caption)
            told.append(captions[0])
            bare.append(captions[int(moved < ONLY_NOUNS)])
            columns.append(source_columns(captions[0], bare[-1]))
        ids = torch.tensor([self.ids(c) for c in (*told, *bare)], device=self.rows.device)
        both = text_states(self.text, F.embedding(ids, self.rows))[0]
        kept = torch.tensor(columns, device=both.device)[..., None].expand(-1, -1, both.shape[-1])
        names = self.told(both[: len(told)], told_scenes(drawn, told))
        return torch.cat(both.chunk(2), 1).gather(1, kept), names, list(map(noun_columns, bare))

    def scene(self, number: int) -> scenes.Scene:
        """The scene of that number, with traits in its caption."""
        rng = np.random.default_rng((self.seed, number, 5))
        return descriptions.describe(scenes.scene("train", self.seed, number), rng)

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        drawn = [self.scene(example.index) for example in batch]
        shown = [scenes.draw(scene) for scene in drawn]
        pixels = torch.from_numpy(np.stack([image for image, _ in shown])).movedim(-1, 1).float()
        latents = F.pixel_unshuffle(pixels * 2 - 1, sizes.FOLD) * sizes.LATENT_SCALE
        numbers = [e.index for e in batch]
        noise, steps = draw_noise(numbers, latents.shape[1:], len(self.sigmas), self.seed)
        steps = NOISE.replace_steps(steps, numbers, self.sigmas, self.seed)
        alpha = self.alphas[steps].view(-1, 1, 1, 1)
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        context, told, nouns = self.context(batch, drawn)
        v = self.unet(
            a * latents + b * noise,
            steps.float(),
            context=context,
            transformer_options=training_options(latents.device),
        )
        target = losses.denoising_target("v", latents, noise, a, b)
        where = subject_weights([masks for _, masks in shown])
        denoising = losses.denoising_loss(v, target, torch.ones(len(batch)), where).mean()
        masks = [masks for _, masks in shown]
        layout, traits = self.layout(drawn, masks)
        found = self.nouns.loss(nouns, masks)
        loss = denoising + self.layout_weight * (layout + TRAITS * traits)
        loss = loss + TOLD * told + FOUND * found
        terms = {"denoising": denoising, "layout": layout, "traits": traits, "told": told}
        terms["found"] = found
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

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


def told_scenes(drawn: Sequence[scenes.Scene], captions: Sequence[str]) -> list[scenes.Scene]:
    """The scenes of these captions; a scene whose caption was dropped has no subjects."""
    pairs = zip(drawn, captions, strict=True)
    return [scene if caption else replace(scene, placed=()) for scene, caption in pairs]


def subject_weights(masks: Sequence[np.ndarray]) -> Tensor:
    """How much each latent position counts [B 1 h w]: more where subjects stand."""
    standing = [torch.from_numpy(of_scene.any(0)).float() for of_scene in masks]
    grid = (scenes.SIDE // sizes.FOLD,) * 2
    return losses.weigh_subjects(torch.stack(standing)[:, None], grid, SUBJECTS)


def noun_columns(caption: str) -> list[int]:
    """Columns of the nouns in a caption's states."""
    return [i for i, word in enumerate(caption.split(), 1) if word in sprites.CLASSES]


def source_columns(told: str, bare: str) -> list[int]:
    """Where each column of a caption without traits comes from: a noun's from the caption with
    traits (0..TOKENS), every other from the one without (TOKENS..2 TOKENS)."""
    nouns = noun_columns(told)
    columns = list(range(sizes.TOKENS, 2 * sizes.TOKENS))
    for i, word in enumerate(bare.split(), 1):
        if word in sprites.CLASSES:
            columns[i] = nouns.pop(0)
    return columns


def new_words_drawn(rows: Tensor, seed: int) -> Tensor:
    """Rows [n W] of the token table; those of words that earlier training did not know (zeros) get
    random values as large as the others."""
    new = rows.abs().amax(1) == 0
    if new.any() and not new.all():
        drawn = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
        rows[new] = drawn[new] * rows[~new].std()
    return rows


def every_token(clip) -> list[int]:
    """The tokens that captions can have, ascending."""
    tokens = set()
    for words in scenes.every_word():
        for chunk in clip.tokenize(words)["l"]:
            tokens |= {token for token, _ in chunk}
    return sorted(tokens)
