"""Checkpoints with routers: strict as the others, and nothing changes for those without."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mmdiff_core import config as configs
from mmdiff_core.checkpoints import checkpoint, shapes
from mmdiff_core.checkpoints.checkpoint import CheckpointError
from mmdiff_core.config import CONFIGS, PORTRAIT_SDXL, MMDiffConfig
from mmdiff_core.training.config import AdapterConfig
from mmdiff_core.training.trainable import TrainableAdapter, to_flat

from support import make
from support.cases import CHECKPOINT

NAMES = tuple(name for name in CONFIGS if "sd2" not in name)


def routed(like: str = "sd15") -> MMDiffConfig:
    return replace(make.narrow_config(like), routed=True)


# ---------------------------------------------------------------- without routers


def test_the_recorded_official_checkpoint_has_the_identity_that_it_had_before():
    """Saved subjects name their adapter by it."""
    assert checkpoint.load(CHECKPOINT).fingerprint == "a73b6017e634f6d8"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda c: c.name)
def test_no_named_adapter_is_routed_nor_says_a_word_of_it_in_its_header(config):
    assert not config.routed and "routed" not in config.to_json()
    assert not any("router" in key for key in shapes.unet_shapes(config, 4))


# ---------------------------------------------------------------- the header


def test_a_routed_adapter_says_so_and_a_reader_of_before_refuses_it_by_name():
    text = routed().to_json()
    bases = {routed().base.name: routed().base}
    assert MMDiffConfig.from_json(text, bases) == routed()
    before = configs._header(PORTRAIT_SDXL)
    with pytest.raises(ValueError, match=r"unknown fields \['routed'\].*newer version"):
        configs._check_names(json.loads(text), before)


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_a_header_that_says_it_in_another_way_is_refused(wrong):
    fields = json.loads(PORTRAIT_SDXL.to_json()) | {"routed": wrong}
    with pytest.raises(ValueError, match="routed"):
        MMDiffConfig.from_json(json.dumps(fields))


# ---------------------------------------------------------------- the file


def test_routers_come_back_from_the_file_unchanged(tmp_path):
    config = routed()
    flat = make.random_tensors(config)
    checkpoint.save_single(tmp_path / "r.safetensors", config, flat, torch.float32)
    again = checkpoint.load(tmp_path / "r.safetensors")
    assert again.config == config
    routers = {key: pair for key, pair in again.unet.items() if key.endswith(".router")}
    assert len(routers) == len(config.base.blocks) == 16
    for key, pair in routers.items():
        assert torch.equal(pair.down, flat[f"unet.{key}.down"])
        assert torch.equal(pair.up, flat[f"unet.{key}.up"])


def test_a_missing_router_and_one_that_is_not_announced_are_named():
    config = routed()
    flat = make.random_tensors(config)
    key = next(key for key in flat if key.endswith("router.up"))
    lacking = {name: tensor for name, tensor in flat.items() if name != key}
    with pytest.raises(CheckpointError, match=f"missing key {key}"):
        checkpoint.check(config, lacking, "x")
    with pytest.raises(CheckpointError, match="unknown key unet.*router"):
        checkpoint.check(replace(config, routed=False), flat, "x")


def test_the_released_layout_has_no_place_for_routers(tmp_path):
    config = routed("sdxl")
    with pytest.raises(CheckpointError, match="no place for the routers"):
        checkpoint.save_official(tmp_path / "out", config, make.random_tensors(config))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the trainer's adapter


@pytest.mark.parametrize("name", NAMES)
def test_the_trainer_of_every_base_makes_an_adapter_with_routers_that_a_file_can_hold(name):
    wanted = AdapterConfig(name=name, rank=8, vision=(), routed=True)
    with torch.device("meta"):
        adapter = TrainableAdapter(wanted, {})
    flat = to_flat(adapter.state_dict())
    checkpoint.check(adapter.config, flat, name)
    blocks = CONFIGS[name].base.blocks
    assert sum("router" in key for key in flat) == 2 * len(blocks)


def test_beside_its_routers_it_starts_as_the_one_without():
    plain, with_routers = (
        TrainableAdapter(AdapterConfig("small-world", 4, 4, (), routed=r), {}, seed=3).state_dict()
        for r in (False, True)
    )
    assert set(with_routers) - set(plain) == {key for key in with_routers if "router" in key}
    assert all(torch.equal(with_routers[key], start) for key, start in plain.items())
    assert not any(w.any() for key, w in with_routers.items() if key.endswith("router/up"))


def test_routers_without_an_image_branch_are_refused():
    with pytest.raises(ValueError, match="adapter.routed .* no image branch"):
        AdapterConfig(routed=True, subject_tokens=False)
