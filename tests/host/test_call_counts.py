"""How often things happen while sampling, and that nothing waits for the device."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import carry
from mmdiff_core.host.progress import Window
from mmdiff_core.host.slot import SubjectAttention

from support.scene import BOTH, SIGMAS, STEPS, calls_of


@pytest.mark.parametrize("name, layers", [("scene", 70), ("scene15", 16)])
def test_every_cross_attention_layer_is_hit_once_per_model_call(name, layers, request, monkeypatch):
    scene = request.getfixturevalue(name)
    hits: dict = {}
    original = SubjectAttention.show

    def counted(self, *args):
        hits[self.slot] = hits.get(self.slot, 0) + 1
        return original(self, *args)

    monkeypatch.setattr(SubjectAttention, "show", counted)
    scene.sample(apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert len(hits) == layers
    assert set(hits.values()) == {len(SIGMAS) - 1}
    assert any(slot[0] == "middle" for slot in hits)


def test_subject_keys_and_values_are_projected_once_per_run(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    calls: dict = {}
    unet = model.model.diffusion_model
    handles = [
        unet.get_submodule(f"{b.path}.attn2.{p}").register_forward_hook(
            lambda m, a, o, key=(b.slot, p): calls.setdefault(key, []).append(a[0].shape[1])
        )
        for b in scene.adapter.config.base.blocks
        for p in ("to_k", "to_v")
    ]
    scene.sample(model, scene.bound())
    for handle in handles:
        handle.remove()
    assert len(calls) == 140
    for lengths in calls.values():
        assert (
            lengths.count(12) == 1
            and lengths.count(77) == len(SIGMAS) - 1
            and len(lengths) == len(SIGMAS)
        )


class Syncs(TorchDispatchMode):
    """Counts the ops that make a GPU's host wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        )
        return func(*args, **(kwargs or {}))


def loop_syncs(scene, model, positive, masks=False) -> int:
    """Syncs of one more step: a longer run minus a shorter one."""
    counts = []
    for sigmas in (STEPS[1:], STEPS):
        with Syncs() as syncs:
            scene.sample(model, positive, sigmas=sigmas)
        counts.append(syncs.count)
    return counts[1] - counts[0]


@pytest.fixture(scope="module")
def plain_syncs(scene) -> int:
    return loop_syncs(scene, scene.model, scene.plain)


@pytest.mark.parametrize("masked", [False, True])
def test_the_sampling_loop_adds_no_host_sync(scene, plain_syncs, masked):
    subjects = scene.subjects
    if masked:
        half = torch.zeros(16, 16)
        half[:, :8] = 1
        subjects = (subjects[0].masked(half), subjects[1].masked(1 - half))
    ours = loop_syncs(scene, apply(scene.model, scene.adapter, BOTH), scene.bound(subjects))
    assert ours == plain_syncs


def test_a_window_stays_a_tensor_on_an_accelerator():
    """On anything but the CPU the decision is a tensor.

    Here the meta device, which cannot be read at all.
    """
    window = Window(2.0, 1.0)
    factor = window.factor(torch.empty(1, device="meta"))
    assert torch.is_tensor(factor) and factor.device.type == "meta"


def test_one_model_call_per_step_also_beside_a_stock_negative(scene):
    steps = len(SIGMAS) - 1
    model = apply(scene.model, scene.adapter, BOTH)
    assert calls_of(scene, model, scene.bound()) == [2] * steps
    assert calls_of(scene, model, scene.bound(), carry(scene.negative, None)) == [2] * steps
