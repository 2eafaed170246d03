"""Nodes and devices that only newer ComfyUI has, beside ours."""

from __future__ import annotations

import torch

from mmdiff_core.host.apply import apply

from support import make
from support.neighbours import check_beside_ours
from support.scene import BOTH

LIKE = "sd15"  # fewer layers than SDXL


def test_nag_before_and_after_ours_acts_and_leaves_the_subjects(scene):
    from comfy_extras.nodes_nag import NAGuidance

    check_beside_ours(scene, lambda model: NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0])


def test_a_sampling_shared_between_two_devices_draws_what_one_device_draws(scene):
    """The host's own scheduler and threads.

    Both its devices are the CPU, which is all that is needed to take that way.
    """
    one = apply(scene.model, scene.adapter, BOTH)
    expected = scene.sample(one, scene.bound())
    second = torch.device("cpu", 1)
    model = scene.model.clone()
    model.cached_patcher_init = (make.narrow_model, ("sd15",))
    model = apply(model, scene.adapter, BOTH)
    other = model.deepclone_multigpu(new_load_device=second)
    other.is_multigpu_base_clone = True
    assert other.model is not model.model
    model.set_additional_models("multigpu", [other])
    calls = []
    for patcher in (model, other):
        patcher.model.diffusion_model.register_forward_pre_hook(
            lambda m, args, which=patcher: calls.append(which)
        )
    found = scene.sample(model, scene.bound())
    assert {id(which) for which in calls} == {id(model), id(other)}, (
        "the host did not share the work"
    )
    assert torch.allclose(found, expected, atol=1e-4)
