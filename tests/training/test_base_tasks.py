"""What trains the small world's base: nouns' columns, told traits, and attention to the nouns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from mmdiff_core.small_world import descriptions, scenes
from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.training.data.workers import MadeAhead

from support.photos import same


def described(number: int) -> scenes.Scene:
    scene = scenes.scene("train", 1, number, count=2)
    return descriptions.describe(scene, np.random.default_rng(number))


@pytest.fixture(scope="module")
def task():
    """The base's task, from the weights in the pack."""
    from mmdiff_core.host import small_world
    from mmdiff_core.lab.unet_task import UNetTask

    return UNetTask(small_world.WEIGHTS, 1, 0.25)


def test_captions_are_split_word_by_word_as_the_tokenizer_does(task):
    captions = task.source.captions
    for number in range(60):
        for scene in (described(number), descriptions.plainly(described(number))):
            tokens = [token for token, _ in task.clip.tokenize(scene.caption)["l"][0]]
            assert [task.vocabulary[row] for row in captions.rows(scene.caption)] == tokens


def test_the_nouns_states_come_from_the_caption_with_traits_and_all_others_from_the_one_shown(task):
    from mmdiff_core.host.frozen_base.encoders import text_states

    batch = task.source.batch(0, 24)
    context, _ = task.context(batch)
    states = []
    for ids in (batch.told, batch.plain):
        states.append(text_states(task.text, torch.nn.functional.embedding(ids, task.rows))[0])
    assert 0 < batch.only_nouns.sum() < 24 and (batch.told_nouns == 0).all(1).any()
    for row in range(24):
        shown = states[int(batch.only_nouns[row])][row].clone()
        nouns = batch.plain_nouns if batch.only_nouns[row] else batch.told_nouns
        for told, column in zip(batch.told_nouns[row], nouns[row], strict=True):
            if column:
                shown[column] = states[0][row, told]
        assert torch.allclose(context[row], shown, atol=1e-6)


def test_layout_maps_say_class_and_traits_of_every_dot(task):
    from mmdiff_core.lab.unet_task import GROUPS, layout_maps, split_groups

    batch = task.source.batch(3, 8)
    *groups, nothing = split_groups(layout_maps(batch.values, batch.masks))
    for row in range(8):
        scene = task.source.scene(3 + row)
        _, masks = scenes.draw(scene)
        assert torch.equal(nothing[row, 0] == 0, torch.from_numpy(masks.any(0)))
        for placed, mask in zip(scene.placed, masks, strict=True):
            wanted = {"class": scenes.CLASSES.index(placed.kind)}
            wanted |= descriptions.traits(placed.identity)
            for name, maps in zip(GROUPS, groups, strict=True):
                assert (maps[row, wanted[name]][torch.from_numpy(mask)] == 1).all()


def test_other_processes_make_the_same_scenes(task):
    ahead = MadeAhead(task.source, 1)
    with closing(ahead):
        made = ahead.batch(5, 4)
    expected = task.source.batch(5, 4)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(made, name), value), name


def test_other_processes_draw_the_same_examples():
    from mmdiff_core.host.frozen_base.run import load_data

    ahead = load_data({"kind": "small-world", "caption_dropout": 0.3, "processes": 1}, 3)
    with closing(ahead):
        made = ahead.batch(2, 6)
    plain = SmallWorldExamples(seed=3, caption_dropout=0.3)
    assert all(same(one, plain.example(number)) for number, one in enumerate(made, 2))


def handlers(_start: int, _size: int) -> list:
    return [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]


def test_processes_that_make_batches_outlive_the_signals_that_stop_a_run():
    ahead = MadeAhead(SmallWorldExamples(), 1, handlers)
    with closing(ahead):
        assert ahead.batch(0, 1) == [signal.SIG_IGN] * 2


ORPHANED = """
import os, sys
sys.path[:0] = {path!r}
from mmdiff_core.training.data.workers import MadeAhead
from test_base_tasks import own_number
if __name__ == "__main__":
    print(MadeAhead(None, 1, own_number).batch(0, 1), flush=True)
    os._exit(1)
"""


def own_number(_start: int, _size: int) -> int:
    return os.getpid()


def test_processes_that_make_batches_end_with_a_run_that_was_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(ORPHANED.format(path=sys.path), encoding="utf-8")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    number = int(ended.stdout)
    until = time.monotonic() + 60
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the process is still there"
        time.sleep(0.1)


def test_the_loss_is_the_weighted_sum_of_the_terms_that_are_logged(task):
    terms = task(task.source.batch(0, 4))
    parts = {"layout": 0.25, "traits": 0.25, "told": 0.1, "found": 0.05, "means": 16.0}
    total = terms["denoising"] + sum(share * terms[name] for name, share in parts.items())
    assert torch.allclose(terms["loss"], total, rtol=1e-4)


def test_told_names_are_the_traits_whose_words_stand_in_the_caption():
    from mmdiff_core.lab.told import TRAITS, told_names

    for number in range(30):
        for placed in described(number).placed:
            words = dict(zip(TRAITS, descriptions.words_of(placed.identity), strict=True))
            assert sorted(words[name] for name in told_names(placed)) == sorted(placed.told)


class Attention(nn.Module):
    """Cross-attention of one head whose positions choose a column of the context."""

    def __init__(self):
        super().__init__()
        self.heads = 1
        self.to_q = self.to_k = nn.Identity()

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x


def test_attention_to_the_own_noun_costs_less_than_attention_to_the_other_one():
    from mmdiff_core.lab.noun_maps import NounMaps

    unet = nn.Module()
    unet.attn2 = Attention()
    context = 12 * torch.eye(4)[None]
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    maps, costs = NounMaps(unet), []
    shown = torch.from_numpy(masks)[None]
    for left, right in ((1, 2), (2, 1)):
        chosen = torch.tensor([left, left, right, right]).repeat(4)
        unet.attn2(context[:, chosen], context=context)
        costs.append(float(maps.loss(torch.tensor([[1, 2]]), shown)))
    assert costs[0] < 0.01 and costs[1] > 5
    unet.attn2(context[:, torch.zeros(16, dtype=torch.long)], context=context)
    assert float(maps.loss(torch.zeros(1, 2, dtype=torch.long), shown)) == 0


def test_the_text_encoder_alone_is_not_trained_from_nothing():
    from mmdiff_core.__main__ import main

    with pytest.raises(SystemExit, match="--init"):
        main(["pretrain", "text", "nowhere"])
