"""Multi-modal cross-attention in ComfyUI's UNet: LoRA as weight patches, the image branch in the attn2 slots.

What happens when:
    Apply            clone the model, patch the clone (weights and 70 or 16 slots)
    once a run       SAMPLER_SAMPLE wrapper: K and V of every subject at every layer, through the layers' own modules
    once a call      DIFFUSION_MODEL wrapper: which rows of the batch show which subjects
    once a layer     the host's own attention, then the image branch for those rows alone
All that a run makes lives in its own transformer_options and is gone with it.
"""
from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType, ModuleType

import comfy.ldm.modules.attention as host_attention
import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..adapter import MMDiffAdapter, image_weights, join_tokens, key_value
from ..attention import add_image_branch, by_head
from ..bases import SELF_PROJECTIONS, Slot, TransformerBlock
from ..layer_weights import layer_factors
from ..maps import fit_columns
from ..masks import Area, crop_to_grid, noun_bias, shares, token_bias
from ..subjects import PromptSubject, count_tokens
from .conditioning import KEY, NOTHING, BoundPrompt, Row, SubjectRows
from .models import add_patches_strictly, lora_patches
from .watch import WATCH, Columns, Finder, Look, Progress, Recording, Watcher, make_finder, watched_slots

Wrappers = comfy.patcher_extension.WrappersMP
Callbacks = comfy.patcher_extension.CallbacksMP
ALWAYS = 1e8        # a sigma that no schedule begins above: what percent 0 becomes
CLONE_KEY = "mmdiff-slots"
SEARCH_DEPTH, SEARCH_LIMIT = 6, 2000        # references followed when looking for our slot inside another pack's wrapper


@dataclass(frozen=True)
class Strength:
    """How strongly an adapter acts, as on the Apply node."""

    fuse_scale: float = 0.8
    start: float = 0.0          # fraction of the denoising where the image branch begins
    end: float = 1.0            # ... and ends
    lora: float = 1.0
    layers: str = ""            # factors on single layers' image branch: see `layer_weights`


@dataclass(frozen=True, eq=False)
class Window:
    """When the image branch acts, as sigmas. first >= sigma > last."""

    first: float
    last: float

    def factor(self, sigmas: Tensor) -> float | Tensor:
        """1 inside, 0 outside. On a GPU it stays there as a tensor: reading it would stop the sampling loop."""
        if math.isinf(self.first) and self.last <= 0:
            return 1.0
        sigma = sigmas[:1]
        inside = (sigma <= self.first) & (sigma > self.last)
        return float(inside) if sigma.device.type == "cpu" else inside


@dataclass(frozen=True, eq=False)
class Side:
    """Which subjects a side of the constraint (tokens, or nouns in the text) holds, and to what."""

    held: tuple[bool, ...]
    masks: tuple[Tensor | None, ...]        # of the held ones, on the device
    any: bool
    given: bool                             # whether one of them has a mask

    @classmethod
    def of(cls, held: Sequence[bool], masks: Sequence[Tensor | None]) -> Side:
        kept = tuple(mask if hold else None for mask, hold in zip(masks, held, strict=True))
        return cls(tuple(held), kept, any(held), any(mask is not None for mask in kept))

    @classmethod
    def both(cls, subjects: Sequence[PromptSubject], device: torch.device) -> dict[str, Side]:
        """The sides of a prompt, by name: made once a run, for the loop asks for them at every layer and step."""
        regions = [s.region for s in subjects]
        masks = [None if r.mask is None else r.mask.to(device) for r in regions]
        held = {"tokens": [r.hold_tokens for r in regions], "nouns": [r.hold_nouns for r in regions]}
        return {side: cls.of(which, masks) for side, which in held.items()}


@dataclass(frozen=True, eq=False)
class PromptState:
    """One bound prompt during one run: K [1 H N D] and V (weights in it; [B H N D] where weights differ between the
    pictures of a batch) by slot."""

    prompt: BoundPrompt
    keys: dict[Slot, tuple[Tensor, Tensor]]
    sides: Mapping[str, Side]               # "tokens" and "nouns"
    columns: Columns | None = None          # of their nouns and tokens, where the prompt knows its nouns
    finder: Finder | None = None
    made: dict[tuple, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def on(self, device: torch.device) -> PromptState:
        """The same on another device."""
        keys = {slot: (k.to(device), v.to(device)) for slot, (k, v) in self.keys.items()}
        columns = None if self.columns is None else Columns(self.columns.nouns.to(device), self.columns.tokens.to(device))
        finder = None if self.finder is None else self.finder.on(device, columns)
        return PromptState(self.prompt, keys, Side.both(self.prompt.subjects, device), columns, finder)

    def found(self, progress: Progress) -> Tensor | None:
        """Whose each place is [pictures S h w] by now, where that is looked for and settled. The step is read by whoever needs it alone:
        a compiled model would be compiled anew for each."""
        return None if self.finder is None else self.finder.found(progress.step)

    @property
    def holds_nouns(self) -> bool:
        return self.columns is not None and self.sides["nouns"].any

    def region(self, place: Place, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Bias [1|B 1 P N] and gate [1 1 P 1] that hold the subjects' tokens to their regions at a place; made once per grid."""
        tokens = count_tokens(self.prompt.subjects)

        def make(seen: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
            return token_bias(seen, tokens, like.dtype), gate.to(like.dtype)

        return self._made("tokens", place, like, make)

    def noun_region(self, place: Place, like: Tensor) -> Tensor | None:
        """Bias [1|B 1 P T] that holds the subjects' nouns to their regions at a place; T as the prompt was encoded."""
        def make(seen: Tensor, _gate: Tensor) -> tuple[Tensor, None]:
            return noun_bias(seen, self.columns.nouns, like.dtype), None

        return self._made("nouns", place, like, make)[0]

    def _made(self, what: str, place: Place, like: Tensor, make: Callable) -> tuple:
        found, side = place.found, self.sides[what]
        if not (side.given if found is None else side.any):
            return None, None
        key = what, place.grid, place.area, like.dtype, like.device, found is not None and (place.first, place.rows)
        if self.made.get(key, (None,))[0] is not found or key not in self.made:
            seen = shares(side.masks, place.grid, place.latent, place.area, like.device)
            gate = seen.amax(1)[:, None, :, None]
            if found is not None:
                mine = crop_to_grid(found[place.first:place.first + place.rows], place.grid, place.latent, place.area).flatten(2)
                seen = seen * torch.stack([m if hold else torch.ones_like(m) for m, hold in zip(mine.unbind(1), side.held, strict=True)], 1)
            self.made[key] = found, make(seen, gate)
        return self.made[key][1]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a layer looks: its grid, the whole latent's size, the part a cond covers; which pictures of the batch; and the regions that
    were found so far [pictures S h w]."""

    grid: tuple[int, int]
    latent: tuple[int, int]
    area: Area | None
    first: int
    rows: int
    found: Tensor | None


@dataclass(frozen=True, eq=False)
class Run:
    """What one sampling run of one application made before its loop."""

    states: dict[int, PromptState]      # by id of the bound prompt; the state holds the prompt, so ids stay taken
    copies: dict[torch.device, dict[int, PromptState]]      # of the states, for each device of a multi-GPU sampling
    window: Window
    latent: tuple[int, int]
    progress: Progress = field(default_factory=Progress)

    def __deepcopy__(self, memo: dict) -> Run:
        return self


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring rows of one model call that show the same subjects."""

    start: int
    stop: int
    state: PromptState
    area: Area | None
    latent: tuple[int, int]
    factor: float | Tensor
    picture: int | None         # of the first row in the latent batch, where weights differ between pictures
    found: Tensor | None = None             # whose each place is, once that is settled
    watchers: tuple[Watcher, ...] = ()      # who looks at this call


class Application:
    """One Apply on one model: the key its state goes by, and the wrappers that make it."""

    def __init__(self, adapter: MMDiffAdapter, strength: Strength, blocks: Sequence[TransformerBlock]):
        self.adapter = adapter
        self.strength = strength
        factors = layer_factors(strength.layers, blocks)
        self.scales = {slot: strength.fuse_scale * factor for slot, factor in factors.items() if factor != 0}     # lambda of each layer
        self.blocks = tuple(block for block in blocks if block.slot in self.scales)
        self.watched = watched_slots(self.blocks)
        self.key = f"mmdiff-{adapter.fingerprint}"

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    # ------------------------------------------------------------ once a run
    def on_run(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE: models are loaded and the conds processed; make K and V, then sample."""
        prompts = label_conds(guider.conds, self.adapter.fingerprint)
        diffusion_model = guider.inner_model.diffusion_model
        like = guider.inner_model
        model_options = extra_args["model_options"]
        if prompts and self.strength.fuse_scale != 0:
            self.check_slots(model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {}))
        states = {
            id(p): self.make_state(p, diffusion_model, model_dtype(like), noise.device, len(noise), length, sigmas, tuple(noise.shape[-2:]),
                                   like.model_sampling)
            for p, length in prompts.items()
        }
        if self.strength.fuse_scale != 0:
            self.check_holding(states.values(), model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {}))
        devices = [device for device in model_options.get("multigpu_clones", ()) if device != noise.device]
        copies = {device: {i: state.on(device) for i, state in states.items()} for device in devices}
        window = make_window(like.model_sampling, self.strength.start, self.strength.end)
        run = Run(states, copies, window, tuple(noise.shape[-2:]))
        transformer_options = {**model_options.get("transformer_options", {}), self.key: run}
        extra_args = {**extra_args, "model_options": {**model_options, "transformer_options": transformer_options}}
        return executor(guider, sigmas, extra_args, run.progress.counting(callback), noise, *args, **kwargs)

    def check_holding(self, states: Iterable[PromptState], slots: Mapping[tuple, object]) -> None:
        """RuntimeError when nouns should be held to their regions, but another pack draws the text in our slots."""
        if not any(state.holds_nouns for state in states):
            return
        others = [patch.inner for patch in slots.values() if isinstance(patch, SubjectAttention) and patch.inner is not None]
        if others:
            raise RuntimeError(
                f"MM-Diff: a subject's noun should be held to its region, but another node draws the text in {len(others)} layers (by "
                f"{getattr(others[0], '__qualname__', type(others[0]).__qualname__)}); turn hold_nouns off, or take that node away"
            )

    def check_slots(self, slots: Mapping[tuple, object]) -> None:
        """RuntimeError when another node put something else in place of our attention: the subjects would be missing without a word."""
        lost = [block.slot for block in self.blocks if not _holds(slots.get(block.slot, slots.get(block.slot[:2])), self)]
        if lost:
            other = slots.get(lost[0], slots.get(lost[0][:2]))
            name = getattr(other, "__qualname__", type(other).__qualname__)
            raise RuntimeError(
                f"MM-Diff: {len(lost)} of {len(self.blocks)} cross-attention layers no longer show the subjects: a node behind Apply "
                f"MM-Diff Attention replaced them (by {name}); put that node before Apply MM-Diff Attention, which keeps what it finds"
            )

    def make_state(self, prompt: BoundPrompt, diffusion_model: UNetModel, dtype: torch.dtype, device: torch.device, pictures: int = 1,
                   length: int = 0, sigmas: Tensor | None = None, latent: tuple[int, int] = (1, 1), sampling=None) -> PromptState:
        """K and V of a prompt's subjects at every layer, through the layers' own modules; with the `length` of its text, what tells its
        columns apart, and with `sigmas` what finds its subjects' regions."""
        tokens, weights = join_tokens(prompt.subjects)
        tokens, weights = tokens.to(device, dtype), weights.to(device, dtype)
        single = image_weights(prompt.subjects, pictures).to(device, dtype) if prompt.per_image else None
        keys = {}
        for block in self.blocks:
            attn = diffusion_model.get_submodule(block.path).attn2
            k, v = key_value(self.adapter, block, tokens, attn.to_k, attn.to_v, self.strength.lora)
            value = by_head(v * weights, attn.heads)
            keys[block.slot] = (by_head(k, attn.heads), value if single is None else value * single)
        columns = Columns.of(prompt.subjects, prompt.nouns, length, device) if prompt.nouns and length else None
        finder = None
        if columns is not None and sigmas is not None:
            finder = make_finder(prompt.subjects, columns, sigmas, sampling, latent, pictures, self.watched, device)
        return PromptState(prompt, keys, Side.both(prompt.subjects, device), columns, finder)

    # ------------------------------------------------------------ once a model call
    def on_call(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        """DIFFUSION_MODEL: tell the layers which rows show which subjects."""
        groups = self.groups(kwargs.get(KEY, ()), len(x), x.device, transformer_options)
        transformer_options = {**transformer_options, self.key: groups}
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def groups(self, rows: tuple[Row, ...], batch: int, device: torch.device, transformer_options: dict) -> tuple[Group, ...]:
        """Neighbouring equal rows that carry subjects of this adapter, and their state on `device`."""
        mine = [row if row.prompt is not None and row.prompt.adapter == self.adapter.fingerprint else NOTHING for row in rows]
        if all(row.prompt is None for row in mine):
            return ()
        run = transformer_options.get(self.key)
        if not isinstance(run, Run):
            raise RuntimeError(
                "MM-Diff: the subjects' keys and values were not made, because this sampler does not run ComfyUI's SAMPLER_SAMPLE "
                "wrappers; use KSampler, SamplerCustom or a guider built on CFGGuider"
            )
        if len(mine) != batch:
            raise RuntimeError(
                f"MM-Diff: the model was called with {batch} rows, but the conditioning describes {len(mine)}; a node between "
                "sampler and model splits the batch in a way that hides which row is which"
            )
        factor = run.window.factor(transformer_options["sigmas"])
        if isinstance(factor, float) and factor == 0:
            return ()
        states = run.copies.get(device, run.states)
        recording = transformer_options.get(WATCH)
        edges = [0, *(i for i in range(1, batch) if not mine[i].continues(mine[i - 1])), batch]
        return tuple(
            Group(a, b, state, mine[a].area, run.latent, factor, mine[a].picture, state.found(run.progress),
                  self.watchers(state, run.progress, recording))
            for a, b in zip(edges, edges[1:], strict=False) if mine[a].prompt is not None for state in [states[id(mine[a].prompt)]]
        )

    def watchers(self, state: PromptState, progress: Progress, recording: Recording | None) -> tuple[Watcher, ...]:
        """Who looks at a prompt's attention at this step."""
        finder = state.finder if state.finder is not None and state.finder.looks_at(progress.step) else None
        recorded = None if recording is None else recording.watcher(state, self.blocks, progress.step)
        return tuple(w for w in (finder, recorded) if w is not None)


@dataclass(frozen=True, eq=False)
class Added:
    """What another pack adds to a layer's result, and between which sigmas."""

    callback: Callable
    kwargs: dict

    def __call__(self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        inside = self.inside(extra_options.get("sigmas"))
        if inside is False:
            return out
        seen = self.callback(out, q, k, v, extra_options, **self.kwargs)
        if inside is not True:
            seen = seen.masked_fill(~inside.view(1, 1, 1), 0)
        return (out + seen).to(q.dtype)

    def inside(self, sigmas: Tensor | None) -> bool | Tensor:
        """Whether it acts at this sigma. On a GPU the answer stays there as a tensor: reading it would stop the sampling loop."""
        start, end = self.kwargs.get("sigma_start", math.inf), self.kwargs.get("sigma_end", 0.0)
        if sigmas is None or (start >= ALWAYS and end <= 0):
            return True
        found = (sigmas[:1] <= start) & (sigmas[:1] >= end)
        return bool(found) if found.device.type == "cpu" else found


@dataclass(frozen=True, eq=False)
class SubjectAttention:
    """The attn2 slot of one layer: what held it before us, then the image branch, then what other packs add.

    IPAdapter, InstantID and PuLID call `.add` on whatever holds a slot when they come; its meaning here is theirs. That changes this
    object, so every clone of a model gets slots of its own (`own_slots`).
    """

    application: Application
    slot: Slot
    inner: Callable | None = None
    added: list[Added] = field(default_factory=list)

    def add(self, callback: Callable, **kwargs) -> None:
        """callback(out, q, k, v, extra_options, **kwargs) is added to the result while `sigma_end` <= sigma <= `sigma_start`."""
        self.added.append(Added(callback, kwargs))

    def own(self) -> SubjectAttention:
        """The same, to which others may add without changing this one."""
        inner = self.inner.own() if isinstance(self.inner, SubjectAttention) else self.inner
        return SubjectAttention(self.application, self.slot, inner, list(self.added))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        groups = extra_options.get(self.application.key, ())
        out = self.base(q, k, v, extra_options, self.noun_bias(q, k, groups, extra_options))
        if groups and self.inner is not None:
            out = out.clone()           # another pack's result may be shared; ours is written into
        for group in groups:
            out = self.show(out, q, k, group, extra_options)
        for other in self.added:
            out = other(out, q, k, v, extra_options)
        return out

    def base(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None) -> Tensor:
        if self.inner is not None:
            return self.inner(q, k, v, extra_options)
        return host_attention.optimized_attention(
            q, k, v, extra_options["n_heads"], mask=mask, attn_precision=extra_options.get("attn_precision"),
            transformer_options=extra_options
        )

    def noun_bias(self, q: Tensor, k: Tensor, groups: Sequence[Group], extra_options: dict) -> Tensor | None:
        """Bias [B 1 P T] of the text for the rows whose nouns are held to regions, or None when no row's are."""
        whole = None
        for group in groups:
            bias = group.state.noun_region(self.place(group, extra_options), q) if group.state.holds_nouns else None
            if bias is not None:
                whole = q.new_zeros(len(q), 1, q.shape[1], k.shape[1]) if whole is None else whole
                whole[group.start:group.stop] = fit_columns(bias, k.shape[1])
        return whole

    def place(self, group: Group, extra_options: dict) -> Place:
        grid = tuple(extra_options["activations_shape"][-2:])
        return Place(grid, group.latent, group.area, group.picture or 0, group.stop - group.start, group.found)

    def show(self, out: Tensor, q: Tensor, k: Tensor, group: Group, extra_options: dict) -> Tensor:
        """The image branch on the group's rows."""
        key, value = group.state.keys[self.slot]
        heads = extra_options["n_heads"]
        if group.picture is not None and len(value) > 1:
            value = value[group.picture:group.picture + group.stop - group.start]
        if key.dtype != q.dtype or key.device != q.device:
            key, value = key.to(q), value.to(q)
        place = self.place(group, extra_options)
        bias, gate = group.state.region(place, q)
        for watcher in group.watchers:
            if self.slot in watcher.slots:
                own = slice(group.start, group.stop)
                watcher.look(Look(q[own], k[own], heads, key, bias, place.grid, place.first, group.area, group.latent))
        if not isinstance(group.factor, float):
            inside = group.factor.to(q.dtype).view(1, 1, 1, 1)
            gate = inside if gate is None else gate * inside
        scale = self.application.scales[self.slot]
        return add_image_branch(out, q, key, value, scale, bias, gate, (group.start, group.stop))

    def __deepcopy__(self, memo: dict) -> SubjectAttention:
        return self


def model_dtype(base_model) -> torch.dtype:
    """The dtype the model computes in."""
    if hasattr(base_model, "get_dtype_inference"):
        return base_model.get_dtype_inference()
    return base_model.manual_cast_dtype or base_model.get_dtype()


def label_conds(conds: dict[str, list[dict]], adapter: str) -> dict[BoundPrompt, int]:
    """Give every processed cond of a run its `SubjectRows`, so that all batch together; return the adapter's prompts and the length of
    each one's text.

    A cond whose text was zeroed out (ConditioningZeroOut) is an unconditional one and shows nothing, nor does one whose subjects have no
    tokens. The plain half of a delayed prompt ends just above the sigma where the fused half begins, so that no step runs both.
    """
    prompts: dict[BoundPrompt, int] = {}
    for kind in conds:
        for i, cond in enumerate(conds[kind]):
            rows = cond["model_conds"].get(KEY)
            prompt = rows.cond[0].prompt if isinstance(rows, SubjectRows) else None
            if prompt is not None and (_zeroed(cond) or not prompt.shows):
                prompt = None
            changes: dict = {"model_conds": {**cond["model_conds"], KEY: SubjectRows((Row(prompt),))}}
            if isinstance(rows, SubjectRows) and rows.cond[0].prompt is None and "timestep_end" in cond:
                end = torch.tensor(cond["timestep_end"], dtype=torch.float32)
                changes["timestep_end"] = torch.nextafter(end, torch.tensor(math.inf)).item()
            conds[kind][i] = {**cond, **changes}
            if prompt is not None and prompt.adapter == adapter:
                text = cond["model_conds"].get("c_crossattn")
                prompts[prompt] = max(prompts.get(prompt, 0), 0 if text is None else text.cond.shape[1])
    return prompts


def _zeroed(cond: dict) -> bool:
    text = cond["model_conds"].get("c_crossattn")
    return text is not None and not bool(text.cond.any())


def check_unet(model, adapter: MMDiffAdapter) -> tuple[TransformerBlock, ...]:
    """The adapter's blocks, all of them found in the model with the right widths; else a ValueError for the person."""
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"MM-Diff works on Stable Diffusion UNets (SDXL, SD1.5); this model is a {type(model.model).__name__} with a "
            f"{type(unet).__name__}. Load an SDXL checkpoint."
        )
    expected = adapter.config.base.blocks
    found = {name: m for name, m in unet.named_modules() if isinstance(m, BasicTransformerBlock) and m.attn2 is not None}
    wrong = [b for b in expected if b.path not in found or found[b.path].attn2.heads * found[b.path].attn2.dim_head != b.width]
    if wrong or len(found) != len(expected):
        raise ValueError(
            f"the adapter {adapter.source} is for {adapter.config.base.name} with {len(expected)} cross-attention layers; this model "
            f"has {len(found)}" + (f", and {wrong[0].path} is not as expected" if wrong else "")
            + ". Use a checkpoint of the adapter's base model."
        )
    width = next(iter(model.model_state_dict(f"diffusion_model.{expected[0].path}.attn2.to_k.weight").values())).shape[-1]
    if width != adapter.config.context_width:
        raise ValueError(f"the model reads text of width {width}, the adapter needs {adapter.config.context_width}; "
                         f"is the model of the {adapter.config.base.name} family?")
    return expected


def lora_keys(blocks: Sequence[TransformerBlock]) -> dict[str, str]:
    """Pair name -> weight key in the model, for the LoRA that is baked into the layers."""
    return {
        f"{block.path}.{attention}.{projection}":
            f"diffusion_model.{block.path}.{attention}.{projection}{'.0' if projection == 'to_out' else ''}.weight"
        for block in blocks for attention in ("attn1", "attn2") for projection in SELF_PROJECTIONS
    }


def make_window(sampling, start: float, end: float) -> Window:
    """Fractions of the denoising -> sigmas, by the schedule the model has when it samples."""
    first = math.inf if start <= 0 else float(sampling.percent_to_sigma(start))
    last = -1.0 if end >= 1 else float(sampling.percent_to_sigma(end))
    return Window(first, last)


def apply(model, adapter: MMDiffAdapter, strength: Strength):
    """A clone of the model that shows subjects. The model itself stays as it is.

    Raises ValueError when the model is not one the adapter fits, or when it already has this adapter.
    """
    blocks = check_unet(model, adapter)
    application = Application(adapter, strength, blocks)
    if application.key in model.wrappers.get(Wrappers.SAMPLER_SAMPLE, {}):
        raise ValueError(f"{adapter.source} is already applied to this model; one Apply MM-Diff Attention is enough")
    patched = model.clone()
    if CLONE_KEY not in patched.callbacks.get(Callbacks.ON_CLONE, {}):
        patched.add_callback_with_key(Callbacks.ON_CLONE, CLONE_KEY, own_slots)
    if strength.lora != 0:
        add_patches_strictly(patched, lora_patches(adapter.unet, lora_keys(blocks)), strength.lora, "the model")
    patched.add_wrapper_with_key(Wrappers.SAMPLER_SAMPLE, application.key, application.on_run)
    if strength.fuse_scale != 0:
        _fill_slots(patched, application)
        patched.add_wrapper_with_key(Wrappers.DIFFUSION_MODEL, application.key, application.on_call)
    return patched


def own_slots(model, clone) -> None:
    """ON_CLONE: the clone's slots are its own, whatever the host's version shares, so that what is added to one is not in the other."""
    held = clone.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})
    held.update({slot: patch.own() for slot, patch in held.items() if isinstance(patch, SubjectAttention)})


def _holds(patch: object, application: Application) -> bool:
    """Whether a slot's callable is, or wraps, our attention of this application."""
    layer, seen = [patch], set()
    for _ in range(SEARCH_DEPTH):
        if any(isinstance(x, SubjectAttention) and x.application is application for x in layer):
            return True
        seen |= {id(x) for x in layer}
        layer = [x for outer in layer for x in _references(outer) if id(x) not in seen]
        if len(seen) > SEARCH_LIMIT:
            break
    return False


def _references(x: object) -> list:
    """What an object holds, of a function only what it closes over."""
    if isinstance(x, FunctionType):
        return [*(x.__closure__ or ()), *(x.__defaults__ or ())]
    if isinstance(x, (type, ModuleType, Tensor, str, int, float)):
        return []
    return gc.get_referents(x)


def _fill_slots(patched, application: Application) -> None:
    """A block with one transformer layer (SD1.5) is filled under its short name (block, id), where other packs look for it; the host
    prefers the long one (block, id, index), so that is taken where somebody holds it."""
    held = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    depth = Counter(block.slot[:2] for block in application.adapter.config.base.blocks)
    for block in application.blocks:
        short = block.slot[:2]
        slot = short if depth[short] == 1 and block.slot not in held else block.slot
        patched.set_model_attn2_replace(SubjectAttention(application, block.slot, held.get(block.slot, held.get(short))), *slot)
