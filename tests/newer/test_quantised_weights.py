"""int8, fp8 and nvfp4 weights as newer ComfyUI loads them, with our LoRA and our keys and values.

At the interface: the layers, tensors and patches are the host's own, on the CPU, where its kernels
compute in full precision. What a GPU's own kernels for these formats give was not tried.
"""

from __future__ import annotations

import json

import comfy.ops
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import carry

from support import make
from support.scene import BOTH, IMAGE_ONLY, LORA_ONLY, predict

LIKE = "sd15"  # fewer layers than SDXL

FORMATS = ("int8_tensorwise", "float8_e4m3fn", "nvfp4")
EXACT = 2e-4  # of the largest number, between packed weights and the same weights unpacked


def packed(name: str, weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """A weight as it is in a quantised checkpoint."""
    layout = QUANT_ALGOS[kind]["comfy_tensor_layout"]
    tensor = QuantizedTensor.from_float(weight, layout, scale="recalculate")
    said = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
    return {**tensor.state_dict(f"{name}.weight"), f"{name}.comfy_quant": said}


@pytest.fixture(scope="module", params=FORMATS)
def models(request) -> tuple:
    """The narrow model with the linear weights of its attention quantised, and a model with the
    numbers that these stand for."""
    full = make.narrow_model("sd15")
    unet = full.model.diffusion_model
    state = dict(unet.state_dict())
    ops = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=True)
    small = make.narrow_model("sd15", operations=ops)
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Linear) and (".attn1." in name or ".attn2." in name):
            state |= packed(name, state[f"{name}.weight"], request.param)
    loaded = small.model.diffusion_model
    missing, unexpected = loaded.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if "weight" in name]
    for name, layer in unet.named_modules():
        quantised = getattr(loaded.get_submodule(name), "weight", None)
        if isinstance(quantised, QuantizedTensor):
            layer.weight.data.copy_(quantised.dequantize())
    small.model.manual_cast_dtype = torch.float32
    return small, full


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def test_quantised_weights_show_the_subjects_as_the_same_weights_in_full_do(scene, models):
    quantised, full = (
        predict(scene, apply(model, scene.adapter, IMAGE_ONLY), scene.bound()) for model in models
    )
    without = predict(
        scene, apply(models[0], scene.adapter, IMAGE_ONLY), carry(scene.plain, None)
    )
    assert difference(quantised, full) < EXACT * full.abs().max()
    assert difference(quantised, without) > 1e-2


@pytest.mark.parametrize("strength", [LORA_ONLY, BOTH], ids=["LoRA alone", "both"])
def test_our_lora_acts_on_quantised_weights_as_on_the_same_weights_in_full(
    scene, models, strength
):
    """The host unpacks, adds, and packs again, so the patched weights are rounded once more."""
    quantised, full = (
        predict(scene, apply(model, scene.adapter, strength), scene.bound()) for model in models
    )
    without = predict(scene, models[0], scene.plain)
    assert difference(quantised, full) < 0.5 * difference(quantised, without)


def test_a_quantised_model_is_as_before_when_our_lora_is_gone(scene, models):
    before = predict(scene, models[0], scene.plain)
    predict(scene, apply(models[0], scene.adapter, BOTH), scene.bound())
    assert torch.equal(predict(scene, models[0], scene.plain), before)
