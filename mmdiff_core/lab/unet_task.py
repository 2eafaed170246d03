"""What trains the small world's UNet and text encoder, from scenes and captions alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..host import small_world as host
from ..host.frozen_base.encoders import text_states
from ..host.frozen_base.unet_call import training_options
from ..method import losses
from ..small_world import scenes, sizes, sprites
from .noun_maps import NounMaps
from .scene_batch import Captions, SceneBatch, Scenes
from .told import ToldHeads

SUBJECTS = 1.5  # how much more a subject's positions count than the background's
FOUND = 0.05  # weight of the loss that brings the attention maps to the nouns
TOLD = 0.1  # weight of the loss that keeps the traits in the nouns' states
TRAITS = 1.0  # weight of the traits' loss, in units of the classes'
MEANS = 16.0  # weight of the squared error of the channels' means: without it, a colour that is
# wrong in the whole image costs no more than a wrong dot, and skies are never flat


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

    def forward(self, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the classes over positions and heads, and of the traits over the
        subjects' positions, both of the features of the last forward pass."""
        truth = layout_maps(batch.values, batch.masks)
        classes, traits = truth.new_zeros(()), truth.new_zeros(())
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


def layout_maps(values: Tensor, masks: Tensor) -> Tensor:
    """Values [B N G] and masks [B N S S] of a `SceneBatch` -> [B n S S]: 1 at the class and the
    traits of each dot, and at the last map where nothing stands."""
    ones = []
    for group, size in enumerate(GROUPS.values()):
        known = values[..., group]
        ones.append(F.one_hot(known.clamp_min(0), size) * (known >= 0)[..., None])
    maps = torch.einsum("bnc,bnhw->bchw", torch.cat(ones, -1).float(), masks.float())
    standing = maps[:, : GROUPS["class"]].sum(1, keepdim=True)
    return torch.cat([maps, 1 - standing], 1)


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
        sigmas = base.model_sampling.sigmas
        self.register_buffer("alphas", 1 / (1 + sigmas**2), persistent=False)
        self.source = Scenes(captions_of(self.clip, self.vocabulary), tuple(sigmas.tolist()), seed)

    def context(self, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        """States of the captions [B T W] and the loss of the told traits.

        Of one example in ten the caption is dropped. Half of the others are the states of a
        caption without traits, but for the nouns' columns, which come from the caption with
        traits: a subject's image can only change the noun, so the nouns must tell everything.
        """
        bare = torch.where(batch.only_nouns[:, None], batch.plain, batch.told)
        nouns = bare_nouns(batch)
        ids = torch.cat([batch.told, bare])
        told, states = text_states(self.text, F.embedding(ids, self.rows))[0].chunk(2)
        width = (-1, -1, told.shape[-1])
        of_nouns = told.gather(1, batch.told_nouns[..., None].expand(width))
        # where there is no noun, both columns are the first one, which is the same in every caption
        context = states.scatter(1, nouns[..., None].expand(width), of_nouns)
        return context, self.told(told, batch.told_nouns, batch.known)

    def forward(self, batch: SceneBatch) -> dict[str, Tensor]:
        batch = batch.to(self.alphas.device)
        latents, noise = batch.latents, batch.noise
        alpha = self.alphas[batch.steps].view(-1, 1, 1, 1)
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        context, told = self.context(batch)
        v = self.unet(
            a * latents + b * noise,
            batch.steps.float(),
            context=context,
            transformer_options=training_options(latents.device),
        )
        target = losses.denoising_target("v", latents, noise, a, b)
        where = subject_weights(batch.masks)
        denoising = losses.denoising_loss(v, target, alpha.new_ones(len(batch)), where).mean()
        means = (v.float() - target).mean((2, 3)).square().mean()
        layout, traits = self.layout(batch)
        found = self.nouns.loss(bare_nouns(batch), batch.masks)
        loss = denoising + MEANS * means + self.layout_weight * (layout + TRAITS * traits)
        loss = loss + TOLD * told + FOUND * found
        terms = {"denoising": denoising, "layout": layout, "traits": traits, "told": told}
        terms |= {"found": found, "means": means}
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


def bare_nouns(batch: SceneBatch) -> Tensor:
    """Columns of the nouns [B N] in what the UNet sees; 0 where there is none."""
    return torch.where(batch.only_nouns[:, None], batch.plain_nouns, batch.told_nouns)


def subject_weights(masks: Tensor) -> Tensor:
    """Masks [B N S S] -> how much each latent position counts [B 1 h w]: more where subjects
    stand."""
    grid = (scenes.SIDE // sizes.FOLD,) * 2
    return losses.weigh_subjects(masks.any(1, keepdim=True).float(), grid, SUBJECTS)


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


def captions_of(clip, vocabulary: list[int]) -> Captions:
    """How captions of the known words are tokenized, as rows of a table of these tokens."""
    first, *_, last = [vocabulary.index(token) for token, _ in clip.tokenize("")["l"][0]]
    words = {}
    for word in " ".join(scenes.every_word()).split():
        tokens = [vocabulary.index(token) for token, _ in clip.tokenize(word)["l"][0]]
        words[word] = tuple(tokens[1 : tokens.index(last)])
    return Captions(words, first, last)
