"""The text's K and V of a run: a prompt's text is the same at every step, so each layer projects it
once.

How it is known that a layer is given the same text:

    RunText      a cond's text during a run. Where the host joins the texts of a call's conds, those
                 of the same conds are the same tensor object at every step
    KeptText     holds these tensors and what the layers made of them. A layer whose input is one of
                 them, unchanged, gets what it made before

So a text that anybody replaces (a wrapper, an attn2_patch, a tile, a window of prompts) is another
tensor and is projected as ever; one that is written into has another version (`Tracked`). Both are
read from the Python object: nothing waits for the device. Where weights may change between steps
(hooks on a cond), where layers are compiled or gradients are wanted, nothing is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import comfy.conds
import comfy.model_management
import torch
from torch import Tensor, nn

from ..bases import TransformerBlock

TEXT = "c_crossattn"
MOST_BYTES = 256 * 2**20  # of all that a run keeps; SDXL in fp16: 51 MB for cond and uncond
SHARE = 8  # ... and at most this part of the device's free memory
MOST_CALLS = 16  # sets of conds that are batched together
COMPILED = "torch_compile_kwargs"  # where the host's compilation leaves its arguments


@dataclass(frozen=True, eq=False)
class Tracked:
    """A tensor of ours, and whether anybody has written into it."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Tracked:
        """A copy: tensors made in inference mode do not count what is written into them."""
        with torch.inference_mode(False), torch.no_grad():
            copy = tensor.clone()
        return cls(copy, copy._version)

    @property
    def unchanged(self) -> bool:
        """A deep copy that somebody made in inference mode does not count either."""
        return not self.tensor.is_inference() and self.tensor._version == self.version


@dataclass(frozen=True, eq=False)
class Made:
    """What a projection made of a text, and the weight and the number of patches it had."""

    out: Tracked
    weight: object
    patches: int

    def by(self, layer: nn.Module) -> bool:
        """Whether it is still what the layer makes."""
        same = self.weight is _weight(layer) and self.patches == _patches(layer)
        return same and self.out.unchanged


@dataclass(eq=False)
class Text:
    """A joined text [B T C], the same in the model's type, and what each projection made of it
    [B T HD]: None where it cannot be kept."""

    text: Tracked
    cast: Tracked | None = None
    made: dict[nn.Module, Made | None] = field(default_factory=dict)


class RunText(comfy.conds.CONDCrossAttn):
    """A cond's text during a run; `source` is what it was made from, None where another node made
    it by our class."""

    def __init__(self, cond: Tensor, source: Tracked | None = None, kept: KeptText | None = None):
        super().__init__(cond)
        self.source, self.kept = source, kept

    def _copy_with(self, cond: Tensor) -> comfy.conds.CONDCrossAttn:
        return comfy.conds.CONDCrossAttn(cond)

    def process_cond(self, batch_size: int, **kwargs) -> comfy.conds.CONDCrossAttn:
        rows = super().process_cond(batch_size, **kwargs)
        source = self.source
        if source is None or self.cond is not source.tensor or not source.unchanged:
            return rows
        return RunText(rows.cond, source, self.kept)

    def concat(self, others: Sequence[comfy.conds.CONDCrossAttn]) -> Tensor:
        parts = (self, *others)
        make = super().concat
        known = all(isinstance(part, RunText) and part.kept is self.kept for part in parts)
        if self.kept is None or not known:
            return make(others)
        return self.kept.join(parts, lambda: make(others))


class KeptText:
    """What one run keeps of its texts.

    bytes   taken by now, at most `room`
    """

    def __init__(self, room: int):
        self.room, self.bytes = room, 0
        self.calls: dict[tuple, tuple[Sequence[RunText], Text | None]] = {}
        self.inputs: dict[int, Text] = {}  # by id of what a layer is given

    def __deepcopy__(self, memo: dict) -> KeptText:
        return self

    def keep(self, tensor: Tensor) -> Tracked | None:
        """A copy of the tensor, or None where there is no room."""
        if self.bytes + tensor.nbytes > self.room:
            return None
        self.bytes += tensor.nbytes
        return Tracked.of(tensor)

    def hold(self, conds: Mapping[str, list[dict]]) -> None:
        """Let the text of every processed cond be known by its object."""
        for kind in conds:
            for i, cond in enumerate(conds[kind]):
                text = cond["model_conds"].get(TEXT)
                if type(text) is comfy.conds.CONDCrossAttn and (own := self.keep(text.cond)):
                    known = {**cond["model_conds"], TEXT: RunText(own.tensor, own, self)}
                    conds[kind][i] = {**cond, "model_conds": known}

    def join(self, parts: Sequence[RunText], make: Callable[[], Tensor]) -> Tensor:
        """The texts of a call's conds as one tensor, the same object whenever they are the same."""
        key = tuple((id(part.source), len(part.cond)) for part in parts)
        if key not in self.calls and len(self.calls) < MOST_CALLS:
            joined = self.keep(make())
            text = None if joined is None else Text(joined)
            self.calls[key] = parts, text  # parts: so that ids stay taken
            if text is not None:
                self.inputs[id(joined.tensor)] = text
        text = self.calls.get(key, (parts, None))[1]
        return text.text.tensor if text is not None and text.text.unchanged else make()

    def cast(self, joined: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A joined text as the model computes in it; any other tensor as it is."""
        text = self.inputs.get(id(joined))
        if text is None or (joined.device == device and joined.dtype == dtype):
            return joined
        if text.cast is None and text.text.unchanged:
            made = comfy.model_management.cast_to_device(joined, device, dtype)
            text.cast = self.keep(made)
            if text.cast is not None:
                self.inputs[id(text.cast.tensor)] = Text(text.cast)
        cast = text.cast
        usable = cast is not None and cast.unchanged and text.text.unchanged
        same = usable and cast.tensor.device == device and cast.tensor.dtype == dtype
        return cast.tensor if same else joined

    def project(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer makes of x, by its own code when it was not made before."""
        text = self.inputs.get(id(x))
        known = text is not None and text.text.unchanged and not torch.is_grad_enabled()
        if known and (made := text.made.get(layer)) is not None and made.by(layer):
            return made.out.tensor
        out = type(layer).forward(layer, x)
        if known:
            kept = None if layer in text.made else self.keep(out)
            text.made[layer] = kept and Made(kept, _weight(layer), _patches(layer))
        return out

    def forward_of(self, layer: nn.Module) -> Callable[..., Tensor]:
        """What stands in for the layer's `forward` during the run."""

        def forward(x: Tensor, *args, **kwargs) -> Tensor:
            if args or kwargs or torch.compiler.is_compiling():
                return type(layer).forward(layer, x, *args, **kwargs)
            return self.project(layer, x)

        return forward

    @contextlib.contextmanager
    def on(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """While it lasts the layers ask here first. Afterwards they are as they were and nothing is
        kept, also after an exception."""
        ours = [(layer, self.forward_of(layer)) for layer in layers]
        try:
            for layer, forward in ours:
                layer.forward = forward
            yield
        finally:
            for layer, forward in ours:
                if vars(layer).get("forward") is forward:
                    del layer.forward
            self.calls.clear()
            self.inputs.clear()


@contextlib.contextmanager
def keeping_text(
    guider, model_options: Mapping, blocks: Sequence[TransformerBlock], device: torch.device
) -> Iterator[KeptText | None]:
    """Keep the text's K and V of the run that it holds; None where they may not be kept."""
    layers = projections(guider.inner_model.diffusion_model, blocks)
    hooked = any(cond.get("hooks") is not None for kind in guider.conds.values() for cond in kind)
    if hooked or COMPILED in model_options or not layers:
        yield None
        return
    free = int(comfy.model_management.get_free_memory(device))
    kept = KeptText(min(MOST_BYTES, free // SHARE))
    kept.hold(guider.conds)
    with kept.on(layers):
        yield kept


def projections(unet: nn.Module, blocks: Sequence[TransformerBlock]) -> list[nn.Module]:
    """to_k and to_v of the text at every layer; none where a layer is compiled, or where its
    `forward` is somebody's already."""
    found = []
    for block in blocks:
        module, above = unet, [unet]
        for name in f"{block.path}.attn2".split("."):
            module = getattr(module, name)
            above.append(module)
        pair = [module.to_k, module.to_v]
        if any(map(_compiled, (*above, *pair))) or any("forward" in vars(p) for p in pair):
            return []
        found += pair
    return found


def _weight(layer: nn.Module) -> object:
    """The weight itself: the host puts another object there when it patches or moves it."""
    return vars(layer)["_parameters"].get("weight")


def _patches(layer: nn.Module) -> int:
    """Patches that the host applies whenever it casts the weight."""
    return len(getattr(layer, "weight_function", ()))


def _compiled(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
    )
