"""Operations, FLOP, and waits for the device, of one step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

READS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
}

INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class OperationCounter(TorchDispatchMode):
    """Counts what reaches the dispatcher: all operations, those that compute, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # an operation made of others counts as those others
            out = func.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.operations[name] += 1
        self.kernels[name] += not is_view(func)
        self.waits[name] += waits(func, args, kwargs or {}, out)
        return out


def is_view(func: torch._ops.OpOverload) -> bool:
    """Whether the result only looks at the argument's numbers, and nothing is computed."""
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def waits(func: torch._ops.OpOverload, args: tuple, kwargs: dict, out: object) -> bool:
    """Whether the host would wait for a GPU here."""
    name = func._schema.name
    if name in INDEXING:
        return any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        )
    if name == "aten::repeat_interleave":
        return func._overloadname == "Tensor" and kwargs.get("output_size") is None
    if name in ("aten::copy_", "aten::_to_copy"):
        blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        tensors = [t for t in (*args[:2], out) if isinstance(t, Tensor)]
        return blocking and len({t.device for t in tensors}) > 1
    return name in READS


def flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the CPU's fused attention."""

    def attention(q, k, v, *args, **kwargs) -> int:
        return sdpa_flop_count(q, k, v)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})


@dataclass(frozen=True)
class Counts:
    """Operations of one step in the middle of a sampling; `first_` of its first step."""

    operations: dict[str, int]
    kernels: int
    waits: int
    flop: int
    first_operations: int
    first_waits: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.operations.values())
