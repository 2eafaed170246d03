"""The ways to sample that are compared with the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch

from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import BoundPrompt, carry
from mmdiff_core.host.watch import Recorder, WatchPlan, watch
from mmdiff_core.method.adapter import MMDiffAdapter
from mmdiff_core.method.subjects import FindRegions, PromptSubject

from .arm import Arm
from .peer import LoadedPeer, peer_layers
from .setting import NOUNS, Scale, make_adapter, make_masks, make_model, make_subjects, make_text
from .timing import Meter


@dataclass(frozen=True, eq=False)
class World:
    """What all arms share."""

    scale: Scale
    size: int
    model: Any
    adapter: MMDiffAdapter
    positive: list
    negative: list

    def plain(self) -> Arm:
        return Arm("plain", self.model, self.positive, self.negative)

    def ours(self, subjects: int, masked: bool, lora: float = 1.0, keep_text: bool = True) -> Arm:
        """The pack with subjects in the positive prompt and none in the negative one; as it is,
        or without keeping the text's K and V.
        """
        masks = make_masks(subjects, self.size) if masked else [None] * subjects
        prompt = BoundPrompt(make_subjects(self.adapter, masks), self.adapter.fingerprint)
        name = label("ours", subjects, masked) + ("" if lora else ", lora_strength 0")
        name += "" if keep_text else ", text projected at every step"
        model = apply(self.model, self.adapter, Strength(lora=lora), keep_text)
        return Arm(name, model, carry(self.positive, prompt), carry(self.negative, None))

    def looking(self) -> list[Arm]:
        """What the other nodes of the pack add for two subjects.

        Regions found, nouns held, maps watched.
        """
        each_step, settled = FindRegions(settle=0.01, update=True), FindRegions(settle=0.01)
        masked = make_subjects(self.adapter, make_masks(2, self.size))
        nouns = [s.within(hold_nouns=True) for s in masked]
        bounded = [s.within(bound_self_attention=True) for s in masked]
        free = make_subjects(self.adapter, [None, None])
        model = apply(self.model, self.adapter, Strength())

        def arm(name: str, subjects: Sequence[PromptSubject], model=model) -> Arm:
            prompt = BoundPrompt(tuple(subjects), self.adapter.fingerprint, NOUNS)
            return Arm(
                f"2 subjects, {name}",
                model,
                carry(self.positive, prompt),
                carry(self.negative, None),
            )

        def finding(find: FindRegions, **held: bool) -> list[PromptSubject]:
            return [s.within(find=find, **held) for s in free]

        first = "regions found in the first step"
        return [
            arm("masked, nouns held too", nouns),
            arm("masked, self-attention bounded", bounded),
            arm("regions found at every step", finding(each_step)),
            arm(first, finding(settled)),
            arm(f"{first}, nouns held too", finding(settled, hold_nouns=True)),
            arm(f"{first}, self-attention bounded", finding(settled, bound_self_attention=True)),
            arm("maps watched", free, watch(model, Recorder(WatchPlan()))),
        ]

    def peer(self, loaded: LoadedPeer, subjects: int, masked: bool) -> Arm:
        """Another pack applied once per subject, with the layers and arguments of its own Apply
        node.
        """
        attention, slot = loaded.attention, loaded.module.Attn2Replace
        model = self.model.clone()
        masks = make_masks(subjects, self.size) if masked else [None] * subjects
        replacements: dict[tuple, Any] = {}
        for number, mask in enumerate(masks):
            for key, keywords in peer_layers(loaded.peer, self.model, self.scale, number, mask):
                if key in replacements:
                    replacements[key].add(attention, **keywords)
                else:
                    replacements[key] = slot(attention, **keywords)
        for key, replacement in replacements.items():
            model.set_model_attn2_replace(replacement, *key)
        name = label(loaded.peer.name, subjects, masked)
        return Arm(name, model, self.positive, self.negative)


def label(pack: str, subjects: int, masked: bool) -> str:
    return f"{pack}, {subjects} subject{'s' * (subjects > 1)}{', masked' * masked}"


def whole_arms(world: World, subjects: int, peers: Sequence[LoadedPeer]) -> list[Arm]:
    """What draws whole images: free subjects alone."""
    ours = [world.ours(subjects, False, keep_text=keep) for keep in (True, False)]
    return [world.plain(), *ours, *(world.peer(peer, subjects, False) for peer in peers)]


def make_world(scale: Scale, size: int, dtype: torch.dtype, meter: Meter) -> World:
    """Model, adapter and prompts.

    The meter goes on the model before any arm does, and so is outside all of them.
    """
    model = make_model(scale, dtype)
    wrappers = comfy.patcher_extension.WrappersMP
    model.add_wrapper_with_key(wrappers.SAMPLER_SAMPLE, "benchmark", meter.on_run)
    model.add_wrapper_with_key(wrappers.PREDICT_NOISE, "benchmark", meter.on_step)
    return World(
        scale, size, model, make_adapter(scale, dtype), make_text(scale, 3), make_text(scale, 4)
    )


def make_arms(
    world: World,
    counts: Sequence[int],
    masked: bool,
    peers: Sequence[LoadedPeer] = (),
    looks: bool = False,
) -> list[Arm]:
    """Everything that is compared with the plain model."""
    kinds = [False, True] if masked else [False]
    arms = [world.ours(count, kind) for kind in kinds for count in counts]
    arms.append(world.ours(counts[0], False, lora=0.0))
    arms.append(world.ours(counts[0], False, keep_text=False))
    if looks:
        arms += world.looking()
    for peer in peers:
        arms += [world.peer(peer, count, kind) for kind in kinds for count in counts]
    return arms
