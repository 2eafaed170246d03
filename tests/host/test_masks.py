"""Where a subject may act, at any size and precision."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from mmdiff_core.host.apply import apply
from mmdiff_core.method.attention import add_image_branch, by_head
from mmdiff_core.regions.attention_bias import on_grid, shares, token_bias

from support import make
from support.scene import BOTH, IMAGE_ONLY, Scene, half_masks, predict

# ---------------------------------------------------------------- masks


def image_branch(model, sample) -> dict[str, torch.Tensor]:
    """What one model call adds to the text attention of each layer [P C]; `sample` runs the model.

    Measured from outside: the layer's projections give its text attention, and its output layer
    is given the sum.
    """
    seen, added, handles = {}, {}, []

    def keep(name):
        return lambda module, args, out: seen.__setitem__(name, out)

    def compare(path, heads):
        def hook(module, args):
            q, k, v = (seen[path, part] for part in ("to_q", "to_k", "to_v"))
            added[path] = (args[0].float() - optimized_attention(q, k, v, heads).float())[0]

        return hook

    for path, block in model.model.diffusion_model.named_modules():
        layer = getattr(block, "attn2", None)
        if layer is None:
            continue
        for part in ("to_q", "to_k", "to_v"):
            handles.append(getattr(layer, part).register_forward_hook(keep((path, part))))
        handles.append(layer.to_out.register_forward_pre_hook(compare(path, layer.heads)))
    sample()
    for handle in handles:
        handle.remove()
    return added


def grid_of(size: tuple[int, int], positions: int) -> tuple[int, int]:
    """The grid of a layer with that many positions: every level of the UNet halves, rounding up."""
    height, width = size
    while height * width > positions:
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == positions
    return height, width


@pytest.mark.parametrize("size", [(7, 9), (8, 12), (13, 5)])
def test_masks_fit_latents_of_any_size(scene15, size):
    """In every layer a subject is seen where its mask reaches on the layer's own grid, and only
    there.
    """
    left = torch.zeros(24, 40)
    left[:, :12] = left[18:] = 1
    model = apply(scene15.model, scene15.adapter, IMAGE_ONLY)
    prompt = scene15.bound((scene15.subjects[0].masked(left),))
    added = image_branch(model, lambda: predict(scene15, model, prompt, size=size))
    grids = set()
    for path, found in added.items():
        grid = grid_of(size, len(found))
        share = torch.nn.functional.interpolate(left[None, None], size=grid, mode="area").flatten()
        seen = found.abs().amax(1)
        grids.add(grid)
        open_, shut = seen[share > 0], seen[share == 0]
        assert (open_ > 1e-5).all(), f"{path}, {grid}: the subject is missing inside its mask"
        assert not (shut > 1e-5).any(), f"{path}, {grid}: the subject is seen outside its mask"
    assert len(added) == 16 and len(grids) >= 3


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.003), (torch.bfloat16, 0.03)])
def test_half_precision_models_show_subjects(dtype, tolerance):
    """Every layer adds to its text attention what it adds with the same weights in float32."""
    scene = Scene("sd15")
    half = make.narrow_model("sd15", dtype)
    weights = {name: weight.float() for name, weight in half.model.state_dict().items()}
    scene.model.model.load_state_dict(weights)

    def added(model) -> dict[str, torch.Tensor]:
        applied = apply(model, scene.adapter, IMAGE_ONLY)
        return image_branch(applied, lambda: predict(scene, applied, scene.bound()))

    full, found = added(scene.model), added(half)
    assert len(full) == 16
    for path, expected in full.items():
        error = (found[path] - expected).norm() / expected.norm()
        assert error < tolerance, f"{path}: off by {error:.1%} in {dtype}"


# ---------------------------------------------------------------- rows by head


def test_rows_seen_by_head_are_the_rows_themselves_however_they_lie_in_memory():
    from mmdiff_core.method.attention import by_head, rows_by_head

    whole = torch.randn(4, 6, 24)
    for x in (
        whole,
        whole.transpose(0, 1).contiguous().transpose(0, 1),
        torch.randn(5, 6, 48)[1:, :, ::2],
        torch.randn(4, 24, 6).transpose(1, 2),
    ):
        for start, stop in ((0, 4), (1, 3), (3, 4)):
            seen = rows_by_head(x, start, stop, 3)
            assert torch.equal(seen, by_head(x[start:stop], 3))
            seen.zero_()
            assert not x[start:stop].any()
            x[start:stop] = 1.0


def held_tokens(masks, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias and gate of subjects with four tokens each, on a grid of 8 x 8."""
    seen = shares(masks, (8, 8), (8, 8), None, torch.device("cpu"))
    return token_bias(seen, [4] * len(masks), dtype), seen.amax(1)[..., None].to(dtype)


def added_by_subjects(q, k, v, heads, bias, gate) -> torch.Tensor:
    """What the subjects add at lambda 1, by the function that samples and trains."""
    gate = None if gate is None else gate[:, None]
    return add_image_branch(
        torch.zeros_like(q), q, by_head(k, heads), by_head(v, heads), 1.0, bias, gate
    )


def test_a_subject_cannot_be_seen_from_outside_its_region():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 64, 32, generator=generator)
    k, v, other = (torch.randn(1, 8, 32, generator=generator) for _ in range(3))
    bias, gate = held_tokens(half_masks(), torch.float32)
    before = added_by_subjects(q, k, v, 2, bias, gate)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :4], changed_v[:, :4] = other[:, :4] * 9, other[:, 4:] * 9
    after = added_by_subjects(q, changed_k, changed_v, 2, bias, gate)
    right = half_masks()[1].flatten().bool()
    assert torch.equal(before[:, right], after[:, right])
    assert not torch.equal(before[:, ~right], after[:, ~right])


def test_where_no_subject_may_act_the_plain_model_is_left_alone():
    left, _ = half_masks()
    q, k = torch.randn(1, 64, 32), torch.randn(1, 4, 32)
    bias, gate = held_tokens([left], torch.float32)
    seen = added_by_subjects(q, k, k, 2, bias, gate)
    assert seen[:, ~left.flatten().bool()].abs().max() == 0 and torch.isfinite(seen).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_hide_exactly_in_half_precision(dtype):
    q, k = torch.randn(1, 64, 32).to(dtype), torch.randn(1, 8, 32).to(dtype)
    bias, gate = held_tokens(half_masks(), dtype)
    seen = added_by_subjects(q, k, k, 2, bias, gate)
    only = added_by_subjects(q, k[:, :4], k[:, :4], 2, None, None)
    left = half_masks()[0].flatten().bool()
    assert torch.isfinite(seen).all() and torch.allclose(
        seen[:, left].float(), only[:, left].float(), atol=2e-2
    )


def test_masks_of_all_white_are_the_same_as_no_masks(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    white = tuple(s.masked(torch.ones(16, 16)) for s in scene.subjects)
    assert torch.allclose(
        scene.sample(model, scene.bound(white)), scene.sample(model, scene.bound()), atol=1e-4
    )


def test_a_mask_is_cropped_to_the_area_a_cond_covers_not_squeezed():
    left, _ = half_masks(16)
    cropped = on_grid(left, (8, 4), (8, 8), (8, 4, 0, 4))
    assert cropped.max() < 0.1  # the right half of the picture: the mask is not there
    assert on_grid(left, (8, 4), (8, 8), (8, 4, 0, 0)).min() > 0.9
