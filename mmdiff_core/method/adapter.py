"""The trained parts together: subjects in, tokens and words out; K and V for a UNet's layers.

Shapes   R references · N tokens · D context width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bases import TransformerBlock
from ..config import MMDiffConfig
from .attention import Router, full
from .fusion import SubjectToText, WordFusion
from .lora import LoRAPairs, LowRank
from .refiner import QueryTokens, SubjectRefiner
from .subjects import PromptSubject, Subject, VisionFeatures, count_tokens


class SubjectModules(nn.Module):
    """Projection, refiner and fusion of one adapter. The same class is trained and run; `ops` makes
    its layers."""

    def __init__(self, config: MMDiffConfig, ops=nn):
        super().__init__()
        widths = config.text_widths
        self.subject_to_text = SubjectToText(config.cls_width, widths, ops)
        self.query = QueryTokens(
            config.query_width, config.context_width, config.tokens_per_reference, ops
        )
        self.refiner = SubjectRefiner(
            config.context_width,
            config.vision_width,
            config.refiner_depth,
            config.refiner_head_width,
            ops,
        )
        self.fuse = nn.ModuleDict({name: WordFusion(width, ops) for name, width in widths.items()})

    def subject_tokens(self, query: Tensor, patches: Tensor) -> Tensor:
        """Embeddings [R Q] and patches [R L W] -> detail-rich tokens [R T D]."""
        queries = self.query(query)
        return queries + self.refiner(queries, patches)

    def subject_words(self, cls: Tensor) -> dict[str, Tensor]:
        """CLS [R C] -> {encoder: [R width]}."""
        return self.subject_to_text(cls)

    def fuse_words(self, encoder: str, words: Tensor, subjects: Tensor) -> Tensor:
        """Class nouns' embeddings and their subjects [S width] -> what replaces the nouns [S
        width]."""
        return self.fuse[encoder](words, subjects)


@dataclass(frozen=True, eq=False)
class MMDiffAdapter:
    """A loaded checkpoint.

    unet    LoRA pairs by "<module path>.<attn1|attn2>.<projection>", and the routers by
            `router_path`
    text    LoRA pairs by "<l|g>.layers.<i>.<self_attn|mlp>.<projection>"
    vision  fine-tuned image encoder weights by transformers' key names, any subset
    """

    config: MMDiffConfig
    modules: SubjectModules
    unet: LoRAPairs
    text: LoRAPairs
    vision: dict[str, Tensor]
    fingerprint: str
    source: str

    def make_subject(self, features: VisionFeatures, name: str) -> Subject:
        """Features of one subject's references -> the subject. As released, only the first
        reference affects the prompt embedding."""
        tokens = self.modules.subject_tokens(features.query, features.patches)
        words = self.modules.subject_words(features.cls[:1])
        return Subject(
            name=name,
            tokens=tokens.flatten(0, 1).cpu(),
            words={k: v[0].cpu() for k, v in words.items()},
            references=len(features.cls),
            adapter=self.fingerprint,
            identity=F.normalize(F.normalize(features.query.float(), dim=-1).mean(0), dim=0).cpu(),
        )


def key_value(
    adapter: MMDiffAdapter,
    block: TransformerBlock,
    tokens: Tensor,
    to_k: Callable[[Tensor], Tensor],
    to_v: Callable[[Tensor], Tensor],
    lora_strength: float,
) -> tuple[Tensor, Tensor]:
    """K and V of subject tokens [1 N D] at one layer.

    The paper's K_i = (W + dW_i) e uses the base weight without the text LoRA, as does the official
    code. `to_k` and `to_v` are the layer as it is in the model, with the text LoRA patched in at
    `lora_strength`, so that part is taken off again: whatever else the layer carries (a user's own
    LoRA, offloading, fp8 storage) acts on both branches alike.
    """

    def project(layer: Callable[[Tensor], Tensor], name: str) -> Tensor:
        base, image = (adapter.unet[f"{block.path}.attn2.{p}"] for p in (name, f"{name}_image"))
        out = layer(tokens) + image(tokens)
        return out if lora_strength == 0 else out - lora_strength * base(tokens)

    return project(to_k, "to_k"), project(to_v, "to_v")


def router_path(block: TransformerBlock) -> str:
    """Name of a layer's router among the pairs of the UNet."""
    return f"{block.path}.attn2.router"


def make_router(
    adapter: MMDiffAdapter, block: TransformerBlock, means: Tensor, tokens: tuple[int, ...]
) -> Router:
    """The router of one layer for these subjects.

    It is a pair like the LoRA: up @ down @ q lies in the width of the tokens, and a position's
    logit for a subject is its product with the mean of the subject's tokens, over sqrt(D).

    means   of each subject's tokens [1|B S D]
    tokens  number of tokens of each subject
    """
    pair = adapter.unet[router_path(block)]
    keys = means @ pair.up.to(means) @ pair.down.to(means)
    return Router(keys * means.shape[-1] ** -0.5, tokens)


def token_means(subjects: Sequence[PromptSubject]) -> tuple[Tensor, tuple[int, ...]]:
    """Mean of each subject's tokens [1 S D] and their number, of the subjects that have any."""
    tokens = [s.subject.tokens for s in subjects if len(s.subject.tokens)]
    if not tokens:
        return torch.zeros(1, 0, subjects[0].subject.tokens.shape[-1]), ()
    return torch.stack([full(own).mean(0) for own in tokens])[None], tuple(map(len, tokens))


def join_tokens(subjects: Sequence[PromptSubject]) -> tuple[Tensor, Tensor]:
    """All subjects' tokens [1 N D] and each token's weight [1 N 1]."""
    tokens = torch.cat([s.subject.tokens for s in subjects])[None]
    weights = _per_token([float(s.weight) for s in subjects], count_tokens(subjects))
    return tokens, weights[None, :, None]


def image_weights(subjects: Sequence[PromptSubject], images: int) -> Tensor:
    """Each token's further factor for each image of a batch [B 1 N 1]."""
    counts = count_tokens(subjects)
    rows = []
    for i in range(images):
        rows.append(_per_token([s.at_image(i) for s in subjects], counts))
    return torch.stack(rows)[:, None, :, None]


def _per_token(factors: Sequence[float], counts: Sequence[int]) -> Tensor:
    return torch.tensor(factors).repeat_interleave(torch.tensor(counts))


def pair_keys(path: str) -> tuple[str, str]:
    """Names of a pair's tensors in our single file."""
    return f"{path}.down", f"{path}.up"


def collect_pairs(tensors: dict[str, Tensor]) -> LoRAPairs:
    """Inverse of `pair_keys` over a flat dict; a half pair is a KeyError naming what is missing."""
    paths = sorted({key.rsplit(".", 1)[0] for key in tensors})
    pairs = {}
    for path in paths:
        down, up = pair_keys(path)
        pairs[path] = LowRank(tensors[down], tensors[up])
    return pairs
