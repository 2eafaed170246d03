"""The conds of a run: which bound prompts they carry, and whether somebody shows each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import comfy.patcher_extension
import torch

from .conditioning import KEY, BoundPrompt, Row, SubjectRows, check_sides, quote_names

PREFIX = "mmdiff-"  # of an application's key, before its adapter's fingerprint


def application_key(adapter: str) -> str:
    """Where the application of an adapter, by its fingerprint, keeps what it makes."""
    return PREFIX + adapter


def label_conds(conds: dict[str, list[dict]]) -> dict[BoundPrompt, int]:
    """Give every processed cond of a run its `SubjectRows`, so that all batch together; return the
    prompts and the length of each one's text.

    A cond whose text was zeroed out (ConditioningZeroOut) is an unconditional one and shows
    nothing, nor does one whose subjects have no tokens. The plain half of a delayed prompt ends
    just above the sigma where the fused half begins, so that no step runs both.
    """
    check_sides(conds)
    prompts: dict[BoundPrompt, int] = {}
    for kind in conds:
        for i, cond in enumerate(conds[kind]):
            conds[kind][i] = labelled = _labelled(cond)
            prompt = labelled["model_conds"][KEY].cond[0].prompt
            if prompt is not None:
                text = cond["model_conds"].get("c_crossattn")
                length = 0 if text is None else text.cond.shape[1]
                prompts[prompt] = max(prompts.get(prompt, 0), length)
    return prompts


def _labelled(cond: dict) -> dict:
    rows = cond["model_conds"].get(KEY)
    ours = isinstance(rows, SubjectRows)
    prompt = rows.cond[0].prompt if ours else None
    if prompt is not None and (_zeroed(cond) or not prompt.shows):
        prompt = None
    labels = SubjectRows((Row(prompt),), served=True)
    changes: dict = {"model_conds": {**cond["model_conds"], KEY: labels}}
    # labelled once, however many adapters a model has
    if ours and not rows.served and rows.cond[0].prompt is None and "timestep_end" in cond:
        end = torch.tensor(cond["timestep_end"], dtype=torch.float32)
        changes["timestep_end"] = torch.nextafter(end, torch.tensor(math.inf)).item()
    return {**cond, **changes}


def _zeroed(cond: dict) -> bool:
    text = cond["model_conds"].get("c_crossattn")
    return text is not None and not bool(text.cond.any())


def sampling_wrappers(options: Mapping) -> Mapping[str, list]:
    """By key, what is wrapped around the sampling of these transformer_options."""
    kind = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
    return options.get("wrappers", {}).get(kind, {})


def check_served(prompts: Mapping[BoundPrompt, int], options: Mapping, source: str) -> None:
    """RuntimeError for a prompt whose adapter is not applied to this model; `source` is one that
    is."""
    applied = sampling_wrappers(options)
    for prompt in prompts:
        if application_key(prompt.adapter) not in applied:
            raise RuntimeError(
                f"MM-Diff: the prompt with the subjects {quote_names(prompt.subjects)} was encoded "
                f"with another MM-Diff checkpoint than {source!r}, which is applied to this model, "
                "so they would not appear; connect the same Load MM-Diff to MM-Diff Text Encode "
                "and Apply MM-Diff Attention, or apply the other checkpoint to the model as well"
            )
