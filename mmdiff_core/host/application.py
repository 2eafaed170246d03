"""One Apply on one model: what it makes for each run, and which rows of each model call show which
subjects.

What happens when:
    apply.py         clone the model, patch the clone (weights and 70 or 16 slots)
    once a run       SAMPLER_SAMPLE wrapper: K and V of every subject at every layer, through the
                     layers' own modules
    once a call      DIFFUSION_MODEL wrapper: which rows of the batch show which subjects
    slot.py          once a layer: the text branch as it was, then the image branch for those rows
                     alone
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..bases import Slot, TransformerBlock
from ..method.adapter import MMDiffAdapter, image_weights, join_tokens, key_value
from ..method.attention import by_head
from ..regions.layer_weights import layer_factors
from .conditioning import KEY, NOTHING, BoundPrompt, Row, SubjectRows, check_sides
from .run import Group, ModelCall, PromptState, Run, Side, Window
from .slot import SubjectAttention
from .watch import WATCH, Columns, Recording, StepCounter, Watcher, make_finder, watched_slots


@dataclass(frozen=True)
class Strength:
    """How strongly an adapter acts, as on the Apply node."""

    fuse_scale: float = 0.8
    start: float = 0.0  # fraction of the denoising where the image branch begins
    end: float = 1.0  # ... and ends
    lora: float = 1.0
    layers: str = ""  # factors on single layers' image branch: see `layer_weights`


class Application:
    """One Apply on one model: the key its state goes by, and the wrappers that make it."""

    def __init__(
        self, adapter: MMDiffAdapter, strength: Strength, blocks: Sequence[TransformerBlock]
    ):
        self.adapter = adapter
        self.strength = strength
        factors = layer_factors(strength.layers, blocks)
        # lambda of each layer
        self.scales = {
            slot: strength.fuse_scale * factor for slot, factor in factors.items() if factor != 0
        }
        self.blocks = tuple(block for block in blocks if block.slot in self.scales)
        self.watched = watched_slots(self.blocks)
        self.key = f"mmdiff-{adapter.fingerprint}"

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    # ------------------------------------------------------------ once a run
    def on_run(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE: models are loaded and the conds processed; make K and V, then sample."""
        model_options = extra_args["model_options"]
        options = model_options.get("transformer_options", {})
        run = self.make_run(guider, sigmas, noise, model_options)
        extra_args = {
            **extra_args,
            "model_options": {**model_options, "transformer_options": {**options, self.key: run}},
        }
        latents = executor(
            guider, sigmas, extra_args, run.steps.counting(callback), noise, *args, **kwargs
        )
        self.check_called(run)
        return latents

    def make_run(self, guider, sigmas: Tensor, noise: Tensor, model_options: dict) -> Run:
        """Everything of a run that does not depend on the step. RuntimeError where nouns cannot be
        held."""
        prompts = label_conds(guider.conds, self.adapter.fingerprint)
        model, latent = guider.inner_model, tuple(noise.shape[-2:])
        states = {
            id(p): self.make_state(
                p,
                model.diffusion_model,
                model_dtype(model),
                noise.device,
                len(noise),
                length,
                sigmas,
                latent,
                model.model_sampling,
            )
            for p, length in prompts.items()
        }
        options = model_options.get("transformer_options", {})
        slots = options.get("patches_replace", {}).get("attn2", {})
        acts = bool(prompts) and self.strength.fuse_scale != 0
        if acts:
            self.check_holding(states.values(), slots)
        devices = [
            device for device in model_options.get("multigpu_clones", ()) if device != noise.device
        ]
        copies = {}
        for device in devices:
            copies[device] = {i: state.on(device) for i, state in states.items()}
        window = Window.of(model.model_sampling, self.strength.start, self.strength.end)
        return Run(states, copies, window, latent, self.unsure_slots(slots) if acts else {})

    def check_holding(self, states: Iterable[PromptState], slots: Mapping[tuple, object]) -> None:
        """RuntimeError when nouns should be held to their regions, but another pack draws the text
        in our slots."""
        if not any(state.holds_nouns for state in states):
            return
        others = [
            patch.inner
            for patch in slots.values()
            if isinstance(patch, SubjectAttention) and patch.inner is not None
        ]
        if others:
            raise RuntimeError(
                "MM-Diff: hold_nouns is on, but another node replaced the text attention in "
                f"{len(others)} layers ({_name_of(others[0])}); turn hold_nouns off, or remove "
                "that node"
            )

    def unsure_slots(self, slots: Mapping[tuple, object]) -> dict[Slot, str]:
        """Our slots that another node's object holds now, and its name: whether it calls ours on
        shows when it samples."""
        unsure = {}
        for block in self.blocks:
            patch = slots.get(block.slot, slots.get(block.slot[:2]))
            if not (isinstance(patch, SubjectAttention) and patch.holds(self.key)):
                unsure[block.slot] = _name_of(patch)
        return unsure

    def check_called(self, run: Run) -> None:
        """RuntimeError when another node put something else in place of our attention: the subjects
        would be missing without a word."""
        if run.uncalled:
            name = next(iter(run.uncalled.values()))
            raise RuntimeError(
                f"MM-Diff: {len(run.uncalled)} of {len(self.blocks)} cross-attention layers no "
                "longer run the image branch: a node after Apply MM-Diff Attention replaced them "
                f"({name}); put that node before Apply MM-Diff Attention, which keeps existing "
                "patches"
            )

    def make_state(
        self,
        prompt: BoundPrompt,
        diffusion_model: UNetModel,
        dtype: torch.dtype,
        device: torch.device,
        pictures: int = 1,
        length: int = 0,
        sigmas: Tensor | None = None,
        latent: tuple[int, int] = (1, 1),
        sampling=None,
    ) -> PromptState:
        """K and V of a prompt's subjects at every layer, through the layers' own modules; with the
        `length` of its text, what tells its columns apart, and with `sigmas` what finds its
        subjects' regions."""
        tokens, weights = join_tokens(prompt.subjects)
        tokens, weights = tokens.to(device, dtype), weights.to(device, dtype)
        single = None
        if prompt.per_image:
            single = image_weights(prompt.subjects, pictures).to(device, dtype)
        keys = {}
        for block in self.blocks:
            attn = diffusion_model.get_submodule(block.path).attn2
            k, v = key_value(self.adapter, block, tokens, attn.to_k, attn.to_v, self.strength.lora)
            value = by_head(v * weights, attn.heads)
            keys[block.slot] = (by_head(k, attn.heads), value if single is None else value * single)
        columns = None
        if prompt.nouns and length:
            columns = Columns.of(prompt.subjects, prompt.nouns, length, device)
        finder = None
        if columns is not None and sigmas is not None:
            finder = make_finder(
                prompt.subjects, columns, sigmas, sampling, latent, pictures, self.watched, device
            )
        return PromptState(prompt, keys, Side.both(prompt.subjects, device), columns, finder)

    # ------------------------------------------------------------ once a model call
    def on_call(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        """DIFFUSION_MODEL: tell the layers which rows show which subjects."""
        groups = self.groups(kwargs.get(KEY, ()), len(x), x.device, transformer_options)
        run = transformer_options.get(self.key)
        call = ModelCall(groups, run.uncalled if isinstance(run, Run) else {})
        transformer_options = {**transformer_options, self.key: call}
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def groups(
        self, rows: tuple[Row, ...], batch: int, device: torch.device, transformer_options: dict
    ) -> tuple[Group, ...]:
        """Neighbouring equal rows that carry subjects of this adapter, and their state on
        `device`."""
        mine = [
            row
            if row.prompt is not None and row.prompt.adapter == self.adapter.fingerprint
            else NOTHING
            for row in rows
        ]
        if all(row.prompt is None for row in mine):
            return ()
        run = transformer_options.get(self.key)
        if not isinstance(run, Run):
            raise RuntimeError(
                "MM-Diff: the subjects' keys and values were not computed, because this sampler "
                "does not run ComfyUI's SAMPLER_SAMPLE wrappers; use KSampler, SamplerCustom or a "
                "guider built on CFGGuider"
            )
        if len(mine) != batch:
            raise RuntimeError(
                f"MM-Diff: the model was called with {batch} rows, but the conditioning describes "
                f"{len(mine)}; a node between sampler and model splits the batch so that its rows "
                "can no longer be matched"
            )
        factor = run.window.factor(transformer_options["sigmas"])
        if isinstance(factor, float) and factor == 0:
            return ()
        states = run.copies.get(device, run.states)
        recording = transformer_options.get(WATCH)
        edges = [0, *(i for i in range(1, batch) if not mine[i].continues(mine[i - 1])), batch]
        groups = []
        for start, stop in zip(edges, edges[1:], strict=False):
            row = mine[start]
            if row.prompt is not None:
                state = states[id(row.prompt)]
                watchers = self.watchers(state, run.steps, recording)
                groups.append(
                    Group(
                        start,
                        stop,
                        state,
                        row.area,
                        run.latent,
                        factor,
                        row.image,
                        state.regions(run.steps),
                        watchers,
                    )
                )
        return tuple(groups)

    def watchers(
        self, state: PromptState, steps: StepCounter, recording: Recording | None
    ) -> tuple[Watcher, ...]:
        """Who records a prompt's attention at this step."""
        finder = state.finder
        if finder is not None and not finder.looks_at(steps.step):
            finder = None
        recorded = None if recording is None else recording.watcher(state, self.blocks, steps.step)
        return tuple(w for w in (finder, recorded) if w is not None)


def _name_of(patch: object) -> str:
    return getattr(patch, "__qualname__", type(patch).__qualname__)


def model_dtype(base_model) -> torch.dtype:
    """The dtype the model computes in."""
    if hasattr(base_model, "get_dtype_inference"):
        return base_model.get_dtype_inference()
    return base_model.manual_cast_dtype or base_model.get_dtype()


def label_conds(conds: dict[str, list[dict]], adapter: str) -> dict[BoundPrompt, int]:
    """Give every processed cond of a run its `SubjectRows`, so that all batch together; return the
    adapter's prompts and the length of each one's text.

    A cond whose text was zeroed out (ConditioningZeroOut) is an unconditional one and shows
    nothing, nor does one whose subjects have no tokens. The plain half of a delayed prompt ends
    just above the sigma where the fused half begins, so that no step runs both.
    """
    check_sides(conds)
    prompts: dict[BoundPrompt, int] = {}
    for kind in conds:
        for i, cond in enumerate(conds[kind]):
            rows = cond["model_conds"].get(KEY)
            ours = isinstance(rows, SubjectRows)
            prompt = rows.cond[0].prompt if ours else None
            if prompt is not None and (_zeroed(cond) or not prompt.shows):
                prompt = None
            changes: dict = {
                "model_conds": {**cond["model_conds"], KEY: SubjectRows((Row(prompt),))}
            }
            if ours and rows.cond[0].prompt is None and "timestep_end" in cond:
                end = torch.tensor(cond["timestep_end"], dtype=torch.float32)
                changes["timestep_end"] = torch.nextafter(end, torch.tensor(math.inf)).item()
            conds[kind][i] = {**cond, **changes}
            if prompt is not None and prompt.adapter == adapter:
                text = cond["model_conds"].get("c_crossattn")
                prompts[prompt] = max(
                    prompts.get(prompt, 0), 0 if text is None else text.cond.shape[1]
                )
    return prompts


def _zeroed(cond: dict) -> bool:
    text = cond["model_conds"].get("c_crossattn")
    return text is not None and not bool(text.cond.any())
