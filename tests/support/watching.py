"""Prompts with nouns, and what a watched sampling records."""

from __future__ import annotations

from mmdiff_core.host.conditioning import BoundPrompt, carry
from mmdiff_core.host.watch import Recorder, WatchPlan, watch

NOUNS = ((3,), (7, 9))


def prompt(scene, subjects=None, nouns=NOUNS) -> list:
    return carry(
        scene.plain,
        BoundPrompt(
            scene.subjects if subjects is None else subjects, scene.adapter.fingerprint, nouns
        ),
    )


def record(scene, model, positive, plan=WatchPlan(), **options) -> Recorder:  # noqa: B008
    recorder = Recorder(plan)
    scene.sample(watch(model, recorder), positive, **options)
    return recorder
