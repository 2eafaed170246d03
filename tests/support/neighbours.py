"""What a test does to see that another pack or node acts beside ours."""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import torch

from mmdiff_core.host.apply import apply

from support import make
from support.scene import IMAGE_ONLY, ONE_STEP, STEPS


def draw(
    scene, model, positive, cfg=1.0, sigmas=ONE_STEP, size=(8, 8), negative=None
) -> torch.Tensor:
    return scene.sample(model, positive, negative, cfg=cfg, sigmas=sigmas, size=size)


def check_beside_ours(scene, theirs):
    """`theirs` (MODEL -> MODEL) acts before and after ours alike, the subjects show, and the model
    is called as often as without us.
    """
    bound = scene.bound()

    def sample(model, positive):
        torch.manual_seed(0)  # ToMe draws its tokens from the global generator
        calls = []
        handle = model.model.diffusion_model.register_forward_pre_hook(
            lambda m, args: calls.append(len(args[0]))
        )
        out = draw(scene, model, positive, cfg=3.0, sigmas=STEPS, size=(16, 16))
        handle.remove()
        return out, calls

    before, calls = sample(apply(theirs(scene.model), scene.adapter, IMAGE_ONLY), bound)
    after, _ = sample(theirs(apply(scene.model, scene.adapter, IMAGE_ONLY)), bound)
    alone, plain_calls = sample(theirs(scene.model), scene.plain)
    without, _ = sample(apply(scene.model, scene.adapter, IMAGE_ONLY), bound)
    assert torch.isfinite(before).all() and calls == plain_calls
    shows, acts = ((before - other).abs().max() for other in (alone, without))
    assert (before - after).abs().max() <= 0.02 * min(shows, acts), "the order matters"
    assert shows > 1e-3 and acts > 1e-5, (shows, acts)  # the narrow model's guidance is weak


def narrow_controlnet():
    config = {
        "image_size": 32,
        "in_channels": 4,
        "model_channels": 32,
        "hint_channels": 3,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_middle": 1,
        "num_head_channels": 16,
        "use_spatial_transformer": True,
        "context_dim": make.CONTEXT,
        "legacy": False,
        "use_linear_in_transformer": False,
        "operations": comfy.ops.manual_cast,
    }
    with torch.random.fork_rng():
        torch.manual_seed(4)
        control = comfy.cldm.cldm.ControlNet(**config)
        for parameter in control.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    control.eval().requires_grad_(False)
    return comfy.controlnet.ControlNet(
        control,
        load_device=comfy.model_management.get_torch_device(),
        manual_cast_dtype=torch.float32,
    )
