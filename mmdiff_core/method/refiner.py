"""Subject tokens: queries made from one embedding of a reference read detail from its dense patch
embeddings.

`ops` is where the layers come from: torch.nn when training, ComfyUI's casting layers when running
inside the host.

Shapes   R references · T tokens per reference · L patches · W patch width · D context width · Q
         query width · H heads
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class QueryTokens(nn.Module):
    """A subject's embedding [R Q] (ArcFace or CLS) -> T query tokens [R T D]."""

    def __init__(self, query_width: int, width: int, tokens: int, ops=nn):
        super().__init__()
        self.count = tokens
        self.hidden = ops.Linear(query_width, 2 * query_width)
        self.act = nn.GELU()
        self.tokens = ops.Linear(2 * query_width, width * tokens)
        self.norm = ops.LayerNorm(width)

    def forward(self, query: Tensor) -> Tensor:
        tokens = self.tokens(self.act(self.hidden(query)))
        return self.norm(rearrange(tokens, "R (T D) -> R T D", T=self.count))


class RefinerBlock(nn.Module):
    """Attention from the tokens to [patches, tokens], then a feed-forward of ratio 2; both
    residual."""

    def __init__(self, width: int, head_width: int, ops=nn):
        super().__init__()
        self.heads = width // head_width
        self.norm_patches = ops.LayerNorm(width)
        self.norm_queries = ops.LayerNorm(width)
        self.to_q = ops.Linear(width, width, bias=False)
        self.to_kv = ops.Linear(width, 2 * width, bias=False)
        self.to_out = ops.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            ops.LayerNorm(width),
            ops.Linear(width, 2 * width, bias=False),
            nn.GELU(),
            ops.Linear(2 * width, width, bias=False),
        )

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        seen, asked = self.norm_patches(patches), self.norm_queries(queries)
        k, v = self.to_kv(torch.cat([seen, asked], dim=1)).chunk(2, dim=-1)
        q, k, v = (
            rearrange(x, "R L (H D) -> R H L D", H=self.heads) for x in (self.to_q(asked), k, v)
        )
        read = rearrange(F.scaled_dot_product_attention(q, k, v), "R H T D -> R T (H D)")
        queries = queries + self.to_out(read)
        return queries + self.feed_forward(queries)


class SubjectRefiner(nn.Module):
    """Query tokens [R T D], patches [R L W] -> what the patches add to them [R T D]."""

    def __init__(self, width: int, patch_width: int, depth: int, head_width: int, ops=nn):
        super().__init__()
        self.project_patches = ops.Linear(patch_width, width)
        self.blocks = nn.ModuleList(RefinerBlock(width, head_width, ops) for _ in range(depth))
        self.project_out = ops.Linear(width, width)
        self.norm_out = ops.LayerNorm(width)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        patches = self.project_patches(patches)
        for block in self.blocks:
            queries = block(queries, patches)
        return self.norm_out(self.project_out(queries))
