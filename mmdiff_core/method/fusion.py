"""Text fusion: a subject's CLS embedding joins the word embedding of its class noun.

Shapes   R references · C CLS width
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SubjectToText(nn.Module):
    """CLS embedding [R C] -> the subject in the width of each text encoder, {encoder: [R
    width]}."""

    def __init__(self, cls_width: int, text_widths: Mapping[str, int], ops=nn):
        super().__init__()
        self.norm = ops.LayerNorm(cls_width)
        self.hidden = ops.Linear(cls_width, cls_width)
        self.act = nn.GELU()
        self.project = nn.ModuleDict(
            {name: ops.Linear(cls_width, width) for name, width in text_widths.items()}
        )

    def forward(self, cls: Tensor) -> dict[str, Tensor]:
        hidden = self.act(self.hidden(self.norm(cls)))
        return {name: project(hidden) for name, project in self.project.items()}


class WordFusion(nn.Module):
    """The class noun's word embedding and the subject, both [R width] -> the vision-augmented word
    [R width]."""

    def __init__(self, width: int, ops=nn):
        super().__init__()
        self.norm = ops.LayerNorm(2 * width)
        self.hidden = ops.Linear(2 * width, width)
        self.act = nn.GELU()
        self.out = ops.Linear(width, width)

    def forward(self, word: Tensor, subject: Tensor) -> Tensor:
        return self.out(self.act(self.hidden(self.norm(torch.cat([word, subject], dim=-1)))))
