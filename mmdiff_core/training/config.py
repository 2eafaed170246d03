"""The config of one training run; it is written into the checkpoint's header.

JSON with the sections of `RunConfig`. A field that is not known, of another type or out of range is
an error; a field that is left out has its default.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ..config import CONFIGS
from ..untrusted import STRICT, fill, load_json, plain, quoted
from .noise import LogNormal

LAYERS = ("all", "deep", "shallow")
FORMS = ("l1", "dice")  # of losses.CONSTRAINTS

# what a run's JSON may say
Rank = Annotated[int, Field(ge=1, le=1024)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Depth = Annotated[int, Field(ge=0, le=64)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
KeyPrefix = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class ConstraintConfig:
    """The constraints on the attention maps.

    The defaults are justified in small_world/README.md by runs in the small world.

    text, image     weights of the two terms, 0 = off
    form            of the two terms: "l1" = FastComposer's balanced L1; "dice" of the mean map of
                    the heads
    leak            weight of what another subject changes inside a subject's mask (XVerse), 0 =
                    off; costs a second forward pass of the examples with several subjects
    layers          "all"; "deep" = the layers with narrower grids, "shallow" = the others
    first, last     range of the noise level, as fraction of the timesteps (0 clean .. 1 noise), in
                    which they act
    warmup          examples over which the weights grow to their values
    """

    __pydantic_config__ = STRICT

    text: Weight = 0.05
    image: Weight = 0.05
    form: str = "l1"
    leak: Weight = 0.0
    layers: str = "all"
    first: Share = 0.0
    last: Share = 1.0
    warmup: Count = 0

    def __post_init__(self) -> None:
        if self.layers not in LAYERS:
            raise ValueError(
                f"constraint.layers is {quoted(self.layers)}, expected one of {LAYERS}"
            )
        if self.form not in FORMS:
            raise ValueError(f"constraint.form is {quoted(self.form)}, expected one of {FORMS}")
        if not 0 <= self.first <= self.last <= 1:
            raise ValueError(
                f"constraint.first..last is {self.first}..{self.last}, expected "
                "0 <= first <= last <= 1"
            )
        if min(self.text, self.image, self.leak) < 0:
            raise ValueError("a constraint's weight is negative; 0 turns it off")


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained.

    name            a name of `config.CONFIGS`: the sizes of the adapter
    rank            of the UNet's LoRA, 1..1024 (published: 64)
    text_rank       of the text encoders' LoRA, 0..1024; 0 = none
    vision          weights of the image encoder whose keys start with one of these are fine-tuned
    refiner_depth   None = the named config's; 0..64, 0 = tokens from the query embedding alone
    text_fusion     whether nouns are fused with their subjects
    subject_tokens  whether the image branch exists
    routed          whether it has a softmax for each subject and a trained router in each layer
    """

    __pydantic_config__ = STRICT

    name: str = "general-sdxl"
    rank: Rank = 64
    text_rank: Annotated[int, Field(ge=0, le=1024)] = 16
    vision: Annotated[tuple[KeyPrefix, ...], Field(max_length=500)] = (
        "visual_projection",
        "vision_model.post_layernorm",
    )
    refiner_depth: Depth | None = None
    text_fusion: bool = True
    subject_tokens: bool = True
    routed: bool = False

    def __post_init__(self) -> None:
        if self.routed and not self.subject_tokens:
            raise ValueError(
                "adapter.routed is true, but adapter.subject_tokens is false: there is no image "
                "branch to route; set one of them otherwise"
            )
        if self.name not in CONFIGS:
            raise ValueError(
                f"adapter.name is {quoted(self.name)}, expected one of {sorted(CONFIGS)}"
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """How the prediction is scored.

    min_snr         gamma of the Min-SNR weighting; None = plain mean squared error
    middle, high    shares of the examples whose noise level comes from the middle, or from the
                    high end, instead of from the whole range; together at most 1
    noise_median, noise_spread, noise_share
                    a share of the examples (0 = none) gets a log-normal sigma with this median and
                    this standard deviation of its logarithm, in place of the other draws
    subject_weight  how much more a subject's pixels count in the denoising loss than the
                    background's; 1 = equal, as published
    subject_weight_until
                    examples over which that weight falls linearly to 1; 0 = it stays. A weight
                    that stays teaches the subjects sooner, but more of them appear than were
                    asked for
    identity_weight weight of the auxiliary objective that every position inside a subject's mask
                    tells which subject of the batch it shows (`training.identity`); 0 = off, as
                    published
    described_first the first examples (0 = none) run no UNet: they teach nouns and subject tokens
                    what the examples' descriptions say (`training.describing`)
    fuse_scale      lambda during training
    checkpointing   recompute the transformer blocks in the backward pass: less memory, about a
                    third more time
    """

    __pydantic_config__ = STRICT

    min_snr: Annotated[float, Field(gt=0, le=1e6)] | None = None
    middle: Share = 0.0
    high: Share = 0.0
    noise_median: Annotated[float, Field(gt=0, le=1e6)] = 2.2
    noise_spread: Annotated[float, Field(ge=0, le=100)] = 0.9
    noise_share: Share = 0.0
    subject_weight: Weight = 1.0
    subject_weight_until: Count = 0
    identity_weight: Weight = 0.0
    described_first: Count = 0
    fuse_scale: Annotated[float, Field(ge=0, le=100)] = 1.0
    checkpointing: bool = False

    @property
    def noise_levels(self) -> LogNormal:
        """The log-normal share of the noise levels."""
        return LogNormal(self.noise_median, self.noise_spread, self.noise_share)

    def __post_init__(self) -> None:
        _ = self.noise_levels       # checks its own ranges
        if self.identity_weight < 0:
            raise ValueError(
                f"objective.identity_weight is {self.identity_weight}, expected 0 (off) or more"
            )
        if min(self.middle, self.high) < 0 or self.middle + self.high > 1:
            raise ValueError(
                f"objective.middle and high are {self.middle} and {self.high}, expected shares of "
                "at most 1 together"
            )
        if self.described_first < 0:
            raise ValueError(
                f"objective.described_first is {self.described_first}, expected a number of "
                "examples; 0 = none"
            )
        if self.subject_weight <= 0:
            raise ValueError(
                f"objective.subject_weight is {self.subject_weight}, expected above 0; 1 counts "
                "all pixels equally"
            )
        if self.subject_weight_until < 0:
            raise ValueError(
                f"objective.subject_weight_until is {self.subject_weight_until}, expected a number "
                "of examples; 0 = it stays"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything of a run. `data` and `loop` go to the data reader and the loop as they are.

    base    a name, or files by their roles
    """

    __pydantic_config__ = STRICT

    base: Any = "checkpoint"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: Mapping[str, Any] = field(default_factory=dict)
    loop: Mapping[str, Any] = field(default_factory=dict)
    seed: Seed = 0

    def __post_init__(self) -> None:
        files = self.base.values() if isinstance(self.base, Mapping) else (self.base,)
        if not all(isinstance(file, str) for file in files):
            raise ValueError(
                f"base is {quoted(self.base)}, expected a name, or names of files by their roles"
            )

    def to_json(self) -> str:
        """JSON with sorted keys; `from_json` is the inverse."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """The config of a JSON text; errors as in `from_dict`."""
        return cls.from_dict(load_json(text, "the run's config"))

    @classmethod
    def from_header(cls, header: Mapping[str, str], name: str) -> RunConfig:
        """The run in the header of the checkpoint `name`. ValueError where there is none."""
        if "run" not in header:
            raise ValueError(
                f"{plain(name)} has no run in its header: it was not trained by this pack"
            )
        try:
            return cls.from_json(header["run"])
        except ValueError as error:
            raise ValueError(f"{plain(name)}: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """ValueError names a field that is unknown, of another type or out of range, with its
        section."""
        return fill(cls, values, "the run's config")
