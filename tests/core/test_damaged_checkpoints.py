"""Checkpoints with something lost, changed or added: refused, in a sentence that names it."""

from __future__ import annotations

import pytest

from mmdiff_core.checkpoints import checkpoint, contents, released
from mmdiff_core.checkpoints.checkpoint import CheckpointError

from support.cases import CHECKPOINT
from support.damage import change, copy_checkpoint, only

# ---------------------------------------------------------------- parts that are gone


@pytest.mark.parametrize(
    "keep, lost",
    [
        (lambda key: False, "attention of text encoder 'l', 'g'"),
        (lambda key: "text_encoder_2" not in key, "attention of text encoder 'g'"),
        (lambda key: "mlp" not in key or "_2" in key, "mlp of text encoder 'l'"),
    ],
    ids=["all", "one encoder", "the mlp of one encoder"],
)
def test_a_text_encoder_that_was_lost_is_not_taken_for_an_untrained_one(tmp_path, keep, lost):
    copy_checkpoint(tmp_path)
    change(tmp_path / released.TEXT_FILE, only(keep))
    with pytest.raises(CheckpointError, match=f"is incomplete: it has no LoRA for the {lost}"):
        checkpoint.load(tmp_path)


def test_every_single_weight_that_is_missing_is_noticed(tmp_path):
    config, flat = checkpoint.read(CHECKPOINT)
    keys = [key for key in flat if key.startswith(("vision.", "text."))]
    for gone in keys:
        left = {key: tensor for key, tensor in flat.items() if key != gone}
        with pytest.raises(CheckpointError, match="missing key|incomplete"):
            contents.check_table(config, left, "x")
            contents.check_whole(config, left, "x")


def test_an_adapter_without_text_or_vision_says_so_in_its_header_and_loads(tmp_path):
    config, flat = checkpoint.read(CHECKPOINT)
    part = {k: v for k, v in flat.items() if not k.startswith(("text.", "vision.vision_model"))}
    checkpoint.save_single(tmp_path / "part.safetensors", config, part)
    assert set(checkpoint.read(tmp_path / "part.safetensors")[1]) == set(part)
    with pytest.raises(CheckpointError, match="is incomplete"):
        checkpoint.save_official(tmp_path / "folder", config, part)
