"""Dynamic VRAM, at its interface: the host's own needs a GPU, so its class of patchers and its
layers that have no weights before they are loaded are put in place by hand.
"""

from __future__ import annotations

import comfy.memory_management
import comfy.model_patcher
import pytest
import torch

from mmdiff_core.host import small_world

CPU = torch.device("cpu")


class Dynamic(comfy.model_patcher.ModelPatcher):
    """Counts as a patcher with dynamic VRAM."""

    def is_dynamic(self) -> bool:
        return True


@pytest.fixture
def dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a host with dynamic VRAM sets when it starts."""
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def usual():
    """The weights of the small world's models as they load without dynamic VRAM."""
    base = small_world.load()
    return [weights(part) for part in parts(base)]


def parts(base) -> tuple[torch.nn.Module, ...]:
    return base.model.model, base.clip.cond_stage_model, base.clip_vision.model


def test_the_small_worlds_models_load_into_the_hosts_patchers_with_all_their_weights(
    usual, dynamic
):
    base = small_world.load()
    for part, expected in zip(parts(base), usual, strict=True):
        assert same(weights(part), expected)
    patchers = base.model, base.clip.patcher, base.clip_vision.patcher
    patchers += (small_world.load_adapter().patcher,)
    assert [type(patcher) for patcher in patchers] == [Dynamic] * 4


def test_the_host_gets_the_small_worlds_model_without_dynamic_vram_where_it_asks_for_that(
    usual, dynamic
):
    """For LoRA of single conditionings, which dynamic VRAM does not have."""
    model = small_world.load().model
    plain = model.clone(disable_dynamic=True)
    assert type(plain) is comfy.model_patcher.ModelPatcher
    assert plain.model is not model.model and same(weights(plain.model), usual[0])


def test_the_host_gets_the_small_worlds_model_once_for_each_gpu(usual):
    model = small_world.load().model
    other = model.deepclone_multigpu(new_load_device=torch.device("cpu", 1))
    assert other.model is not model.model and same(weights(other.model), usual[0])
