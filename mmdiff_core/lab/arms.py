"""The arms of the ablations: one recipe, and what each arm changes in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..training.config import RunConfig

VISION = ("visual_projection", "vision_model.post_layernorm", "vision_model.encoder.layers.3")
DESCRIBED = 16_000  # examples of the stage on descriptions
NO_EXTRAS = {
    "objective.identity_weight": 0.0,
    "objective.subject_weight": 1.0,
    "objective.subject_weight_until": 0,
    "objective.described_first": 0,
}
NO_CONSTRAINT = {"constraint.text": 0.0, "constraint.image": 0.0}


@dataclass(frozen=True)
class Arm:
    """name   of the arm, also of its folder
    about     what differs, in words
    changes   {"section.field": value} of a `RunConfig`
    """

    name: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("recipe", "the shipped recipe: both constraints, balanced L1"),
    Arm("no_constraint", "recipe without constraints", NO_CONSTRAINT),
    Arm("text_constraint", "recipe, the nouns' maps alone constrained", {"constraint.image": 0.0}),
    Arm("image_constraint", "recipe, the tokens' maps alone constrained", {"constraint.text": 0.0}),
    Arm("dice", "recipe, both constraints as Dice of the mean map", {"constraint.form": "dice"}),
    Arm("leak", "recipe and the leak loss in the image", {"constraint.leak": 1.0}),
    Arm("routed", "recipe, a softmax per subject and a router per layer", {"adapter.routed": True}),
    Arm("no_identity", "recipe without the identity heads", {"objective.identity_weight": 0.0}),
    Arm(
        "no_descriptions",
        "recipe without the stage on descriptions",
        {"objective.described_first": 0},
    ),
    Arm("no_refiner", "recipe without SE-Refiner", {"adapter.refiner_depth": 0}),
    Arm("no_text_fusion", "recipe, nouns not fused with subjects", {"adapter.text_fusion": False}),
    Arm("no_subject_tokens", "recipe without the image branch", {"adapter.subject_tokens": False}),
    Arm("paper", "the paper's losses alone: denoising and both constraints", NO_EXTRAS),
    Arm("paper_no_constraint", "denoising alone", NO_EXTRAS | NO_CONSTRAINT),
)
BY_NAME = {arm.name: arm for arm in ARMS}


def run_of(arm: Arm, seed: int, steps: int, batch: int) -> RunConfig:
    """The run of an arm: `steps` of `batch` images. ValueError for an arm that changes a field
    that does not exist."""
    images = steps * batch
    sections: dict[str, dict[str, Any]] = {
        "adapter": {"name": "small-world", "rank": 48, "text_rank": 8, "vision": list(VISION)},
        "constraint": {"text": 0.1, "image": 0.2},
        "objective": {
            "noise_median": 2.2,
            "noise_spread": 1.1,
            "noise_share": 0.8,
            "subject_weight": 6.0,
            "subject_weight_until": int(0.8 * images),
            "identity_weight": 0.04,
            "described_first": min(DESCRIBED, images // 4),
        },
    }
    for name, value in arm.changes.items():
        section, _, own = name.partition(".")
        sections[section][own] = value
    loop = {
        "steps": steps,
        "batch": batch,
        "optimizer": "muon",
        "learning_rate": 0.0015,
        "betas": [0.95, 0.99],
        "warmup_steps": 40,
        "schedule": "cosine",
        "final_fraction": 0.01,
        "ema_decay": 0.99,
        "save_every": 10**6,
        "keep_last": 1,
        "log_every": 20,
        "workers": 2,
        "tracker": None,
    }
    data = {"kind": "small-world"}
    return RunConfig.from_dict(
        {"base": "small-world", "seed": seed, "data": data, "loop": loop, **sections}
    )
