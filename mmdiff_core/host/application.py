"""One Apply on one model: what it makes for each run, and which rows of each model call show which
subjects.

What happens when:
    apply.py         clone the model, patch the clone (weights and 70 or 16 slots)
    once a run       SAMPLER_SAMPLE wrapper: K and V of every subject at every layer, through the
                     layers' own modules; what the layers make of the text is kept (kept_text.py)
                     self-attention slots, where regions ask for them (self_attention.py)
    once a call      DIFFUSION_MODEL wrapper: which rows of the batch show which subjects
    slot.py          once a layer: the text branch as it was, then the image branch for those rows
                     alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from ..bases import Slot, TransformerBlock
from ..method.adapter import (
    MMDiffAdapter,
    image_weights,
    join_tokens,
    key_value,
    make_router,
    token_means,
)
from ..method.attention import Router, by_head
from ..regions.layer_weights import layer_factors
from .conditioning import KEY, NOTHING, BoundPrompt, Row
from .finder import Continuation, Finder, FinderLook, make_finder
from .kept_text import keeping_text
from .layer_attention import Columns, Watcher, watched_slots
from .parts import Latents, add_places, locate, place_rows
from .progress import Window
from .run import Group, ModelCall, PromptState, Run, Side
from .self_attention import bound_self_attention
from .served import application_key, check_served, label_conds, sampling_wrappers
from .slot import SubjectAttention, name_of
from .watch import WATCH, Recording


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
        self,
        adapter: MMDiffAdapter,
        strength: Strength,
        blocks: Sequence[TransformerBlock],
        keep_text: bool = True,
    ):
        self.adapter = adapter
        self.strength = strength
        # layers whose K and V of the text are made once a run
        self.kept_blocks = tuple(blocks) if keep_text and strength.fuse_scale != 0 else ()
        factors = layer_factors(strength.layers, blocks)
        # lambda of each layer
        self.scales = {
            slot: strength.fuse_scale * factor for slot, factor in factors.items() if factor != 0
        }
        self.blocks = tuple(block for block in blocks if block.slot in self.scales)
        self.watched = watched_slots(self.blocks)
        self.key = application_key(adapter.fingerprint)
        self.continuation = Continuation()

    def __deepcopy__(self, memo: dict) -> Application:
        return self

    # ------------------------------------------------------------ once a run
    def on_run(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE: models are loaded and the conds processed; make K and V, then sample."""
        model_options = extra_args["model_options"]
        options = model_options.get("transformer_options", {})
        before = args[0] if args else kwargs.get("latent_image")
        run = self.make_run(guider, sigmas, noise, model_options, before)
        if run.bounds_self_attention and self.strength.fuse_scale != 0:
            options = bound_self_attention(options, self.blocks, self.key)
        with keeping_text(guider, model_options, self.kept_blocks, noise.device) as texts:
            run = replace(run, texts=texts)
            extra_args = {
                **extra_args,
                "model_options": {
                    **model_options,
                    "transformer_options": {**options, self.key: run},
                },
            }
            latents = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        self.check_called(run)
        for state in run.states.values():
            if state.finder is not None:
                self.continuation.keep(state.prompt, state.finder, latents, float(sigmas[-1]))
        return latents

    def make_run(
        self, guider, sigmas: Tensor, noise: Tensor, model_options: dict, before: Tensor | None
    ) -> Run:
        """Everything of a run that does not depend on the step. `before`: the latents it starts
        from. RuntimeError where prompts are not served, or nouns or regions cannot be held."""
        options = model_options.get("transformer_options", {})
        prompts = label_conds(guider.conds)
        check_served(prompts, options, self.adapter.source)
        latents = Latents(len(noise), tuple(noise.shape[-2:]))
        resume = partial(self.continuation.resume, latents=before, sigma=float(sigmas[0]))
        states = self.make_states(guider.inner_model, prompts, noise.device, latents, resume)
        slots = options.get("patches_replace", {}).get("attn2", {})
        acts = bool(states) and self.strength.fuse_scale != 0
        if acts:
            self.check_holding(states.values(), slots)
            wrapper = model_options.get("model_function_wrapper")
            watched = WATCH in sampling_wrappers(options)
            if wrapper is not None and (watched or any(p.has_regions for p in prompts)):
                add_places(guider.conds, latents.size, wrapper)
        copies = {}
        for device in model_options.get("multigpu_clones", ()):
            if device != noise.device:
                copies[device] = {i: state.on(device) for i, state in states.items()}
        sampling = guider.inner_model.model_sampling
        window = Window.of(sampling, self.strength.start, self.strength.end)
        return Run(states, copies, window, latents, self.unsure_slots(slots) if acts else {})

    def make_states(
        self,
        model,
        prompts: Mapping[BoundPrompt, int],
        device: torch.device,
        latents: Latents,
        resume: Callable[[BoundPrompt, Finder], Finder],
    ) -> dict[int, PromptState]:
        """The states of this adapter's prompts, by the prompts' ids. `prompts` tells the length of
        each one's text, `resume` continues the finder of an earlier run."""
        kind = model_dtype(model), device
        states = {}
        for prompt, length in prompts.items():
            if prompt.adapter != self.adapter.fingerprint:
                continue
            keys = self.keys_and_values(prompt, model.diffusion_model, *kind, latents.images)
            columns = finder = None
            if prompt.nouns and length:
                columns = Columns.of(prompt.subjects, prompt.nouns, length, device)
                finder = make_finder(
                    prompt.subjects, columns, model.model_sampling, latents, self.watched
                )
            if finder is not None:
                finder = resume(prompt, finder)
            sides = Side.each(prompt.subjects, device)
            routers = self.routers(prompt, *kind)
            states[id(prompt)] = PromptState(prompt, keys, sides, columns, finder, routers)
        return states

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
                f"{len(others)} layers ({name_of(others[0])}); turn hold_nouns off, or remove "
                "that node"
            )

    def unsure_slots(self, slots: Mapping[tuple, object]) -> dict[Slot, str]:
        """Our slots that another node's object holds now, and its name: whether it calls ours on
        shows when it samples."""
        unsure = {}
        for block in self.blocks:
            patch = slots.get(block.slot, slots.get(block.slot[:2]))
            if not (isinstance(patch, SubjectAttention) and patch.holds(self.key)):
                unsure[block.slot] = name_of(patch)
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

    def keys_and_values(
        self,
        prompt: BoundPrompt,
        unet: UNetModel,
        dtype: torch.dtype,
        device: torch.device,
        images: int = 1,
    ) -> dict[Slot, tuple[Tensor, Tensor]]:
        """K and V of a prompt's subjects at every layer, through the layers' own modules."""
        tokens, weights = join_tokens(prompt.subjects)
        tokens, weights = tokens.to(device, dtype), weights.to(device, dtype)
        single = None
        if prompt.per_image:
            single = image_weights(prompt.subjects, images).to(device, dtype)
        keys = {}
        for block in self.blocks:
            attn = unet.get_submodule(block.path).attn2
            k, v = key_value(self.adapter, block, tokens, attn.to_k, attn.to_v, self.strength.lora)
            value = by_head(v * weights, attn.heads)
            keys[block.slot] = (by_head(k, attn.heads), value if single is None else value * single)
        return keys

    def routers(
        self, prompt: BoundPrompt, dtype: torch.dtype, device: torch.device
    ) -> dict[Slot, Router]:
        """The router of every layer for a prompt's subjects; none where the adapter has none, or no
        subject has tokens."""
        means, tokens = token_means(prompt.subjects)
        if not (self.adapter.config.routed and tokens):
            return {}
        means = means.to(device, dtype)
        return {b.slot: make_router(self.adapter, b, means, tokens) for b in self.blocks}

    # ------------------------------------------------------------ once a model call
    def on_apply(self, executor, *args, **kwargs):
        """APPLY_MODEL: read which part of the latents the call draws, and keep that from the
        model; give it the run's text as the model computes in it."""
        run = args[5].get(self.key) if len(args) > 5 else None  # as the host calls it
        if isinstance(run, Run) and run.texts is not None and args[3] is not None:
            dtype = model_dtype(executor.class_obj)
            args = (*args[:3], run.texts.cast(args[3], args[0].device, dtype), *args[4:])
        return executor(*args, **place_rows(args[0], kwargs))

    def on_call(self, executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        """DIFFUSION_MODEL: tell the layers which rows show which subjects."""
        groups = self.groups(kwargs.get(KEY, ()), x, transformer_options)
        run = transformer_options.get(self.key)
        call = ModelCall(groups, len(x), run.uncalled if isinstance(run, Run) else {})
        transformer_options = {**transformer_options, self.key: call}
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    def groups(
        self, rows: tuple[Row, ...], x: Tensor, transformer_options: dict
    ) -> tuple[Group, ...]:
        """Neighbouring equal rows that carry subjects of this adapter, and their state on the
        device of x [B C h w]."""
        mine = tuple(row if self.serves(row) else NOTHING for row in rows)
        if all(row.prompt is None for row in mine):
            return ()
        run = transformer_options.get(self.key)
        if not isinstance(run, Run):
            raise RuntimeError(
                "MM-Diff: the subjects' keys and values were not computed, because this sampler "
                "does not run ComfyUI's SAMPLER_SAMPLE wrappers; use KSampler, SamplerCustom or a "
                "guider built on CFGGuider"
            )
        watched = WATCH in transformer_options
        mine = locate(mine, x, run.latents, transformer_options, watched)
        factor = run.window.factor(transformer_options["sigmas"])
        if isinstance(factor, float) and factor == 0:
            return ()
        states = run.copies.get(x.device, run.states)
        starts = [i for i in range(1, len(mine)) if not mine[i].continues(mine[i - 1])]
        groups = []
        for start, stop in zip([0, *starts], [*starts, len(mine)], strict=True):
            row = mine[start]
            if row.prompt is not None:
                view = self.look_at(states[id(row.prompt)], transformer_options)
                groups.append(
                    Group(start, stop, row.area, run.latents.size, factor, row.image, *view)
                )
        return tuple(groups)

    def serves(self, row: Row) -> bool:
        return row.prompt is not None and row.prompt.adapter == self.adapter.fingerprint

    def look_at(
        self, state: PromptState, transformer_options: dict
    ) -> tuple[PromptState, Tensor | None, tuple[Watcher, ...]]:
        """A prompt's state, the regions of its subjects found by now, and who records its
        attention in this call."""
        sigmas, watchers = transformer_options["sigmas"], []
        regions = state.regions(sigmas)
        if state.finder is not None:
            weight = state.finder.looks(sigmas)
            if not isinstance(weight, float) or weight != 0:
                watchers.append(FinderLook(state.finder, weight))
        recording: Recording | None = transformer_options.get(WATCH)
        recorder = None if recording is None else recording.watcher(state, self.blocks, sigmas)
        if recorder is not None:
            watchers.append(recorder)
        return state, regions, tuple(watchers)


def model_dtype(base_model) -> torch.dtype:
    """The dtype the model computes in."""
    if hasattr(base_model, "get_dtype_inference"):
        return base_model.get_dtype_inference()
    return base_model.manual_cast_dtype or base_model.get_dtype()
