"""What users may rely on, a test each, inside a ComfyUI process."""
from __future__ import annotations

import copy

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff_core.host.application import Application
from mmdiff_core.host.apply import Strength, apply, check_unet
from mmdiff_core.host.conditioning import BoundPrompt, carry
from mmdiff_core.host.run import Window
from mmdiff_core.host.slot import SubjectAttention
from mmdiff_core.method.attention import add_image_branch, by_head
from mmdiff_core.regions.attention_bias import mask_bias, on_grid

import make
from test_reference import probe

SIGMAS = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0])
LORA_ONLY, IMAGE_ONLY, BOTH = Strength(fuse_scale=0.0), Strength(lora=0.0), Strength()


class Scene:
    """A narrow model with an adapter and two subjects bound to a prompt."""

    def __init__(self, like: str = "sdxl"):
        self.mmdiff = make.random_mmdiff(make.narrow_config(like))
        self.adapter = self.mmdiff.adapter
        self.model = make.narrow_model(like)
        pooled = 160 if like == "sdxl" else None
        self.subjects = (make.random_subject(self.mmdiff, "ann", 1), make.random_subject(self.mmdiff, "bob", 2, references=2))
        self.plain = make.random_conditioning(pooled=pooled)
        self.negative = make.random_conditioning(pooled=pooled, seed=4)

    def bound(self, subjects=None) -> list:
        return carry(self.plain, BoundPrompt(self.subjects if subjects is None else subjects, self.adapter.fingerprint))

    def sample(self, model, positive, negative=None, cfg=3.0, batch=1, size=(8, 8), sigmas=SIGMAS, seed=0):
        noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed)).repeat(batch, 1, 1, 1)
        return comfy.sample.sample_custom(
            model, noise, cfg, comfy.samplers.sampler_object("euler"), sigmas, positive, negative or self.negative,
            torch.zeros_like(noise), disable_pbar=True, seed=0,
        )


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.fixture(scope="module")
def scene15() -> Scene:
    return Scene("sd15")


def rows(scene, model, positive):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return probe(model, positive, scene.negative, x, 500)


# ---------------------------------------------------------------- what stays as it was

def test_unconditional_rows_are_bit_identical_to_the_plain_model(scene):
    plain = rows(scene, scene.model, scene.plain)
    ours = rows(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), scene.bound())
    assert torch.equal(plain[0], ours[0])
    assert not torch.allclose(plain[1], ours[1], atol=1e-3)


def test_unconditional_rows_see_the_lora_and_nothing_else(scene):
    lora = rows(scene, apply(scene.model, scene.adapter, LORA_ONLY), scene.bound())
    both = rows(scene, apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert torch.equal(lora[0], both[0])
    assert not torch.allclose(lora[1], both[1], atol=1e-3)


def test_scale_zero_without_lora_is_bit_identical_to_never_applying(scene):
    off = apply(scene.model, scene.adapter, Strength(fuse_scale=0.0, lora=0.0))
    assert torch.equal(scene.sample(scene.model, scene.plain), scene.sample(off, scene.bound()))


def test_a_prompt_without_subjects_is_bit_identical_to_the_lora_alone(scene):
    lora, both = (apply(scene.model, scene.adapter, s) for s in (LORA_ONLY, BOTH))
    assert torch.equal(scene.sample(lora, scene.plain), scene.sample(both, scene.plain))


def test_a_weight_of_zero_for_all_subjects_shows_none_of_them(scene):
    from dataclasses import replace
    muted = tuple(replace(s, weight=0.0) for s in scene.subjects)
    lora, both = (apply(scene.model, scene.adapter, s) for s in (LORA_ONLY, BOTH))
    assert torch.equal(scene.sample(lora, scene.plain), scene.sample(both, scene.bound(muted)))


def state_of(model) -> dict:
    comfy.model_management.unload_all_models()
    return {k: v.clone() for k, v in model.model.state_dict().items()}


def assert_untouched(model, before: dict, options: dict) -> None:
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not model.patches and not any(w for w in model.wrappers.values())
    assert model.model_options == options


def test_the_input_model_is_unchanged_after_a_run(scene):
    before, options = state_of(scene.model), copy.deepcopy(scene.model.model_options)
    scene.sample(apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert_untouched(scene.model, before, options)


@pytest.mark.parametrize("error", [RuntimeError("boom"), comfy.model_management.InterruptProcessingException()])
def test_the_input_model_is_unchanged_after_an_exception_or_interrupt(scene, error, monkeypatch):
    before, options = state_of(scene.model), copy.deepcopy(scene.model.model_options)
    calls = []

    def failing(self, q, k, v, extra_options):
        calls.append(1)
        if len(calls) > 80:
            raise error
        return original(self, q, k, v, extra_options)

    original = SubjectAttention.__call__
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(SubjectAttention, "__call__", failing)
        scene.sample(apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert_untouched(scene.model, before, options)
    plain = scene.sample(scene.model, scene.plain)
    assert torch.isfinite(plain).all()


def test_a_clone_shares_every_tensor_and_has_slots_of_its_own(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    clone = model.clone()
    for key, patch in model.model_options["transformer_options"]["patches_replace"]["attn2"].items():
        own = clone.model_options["transformer_options"]["patches_replace"]["attn2"][key]
        assert own is not patch and own.key == patch.key and own.slot == patch.slot
    for key, patches in model.patches.items():
        assert clone.patches[key][0][1] is patches[0][1]
    conditioning = scene.bound()
    copied = copy.deepcopy(conditioning)
    assert copied[0][1]["model_conds"]["mmdiff_rows"] is conditioning[0][1]["model_conds"]["mmdiff_rows"]


def test_nothing_of_a_run_stays_on_the_model(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    scene.sample(model, scene.bound())
    held = model.model_options["transformer_options"]
    assert set(held) <= {"patches_replace", "wrappers", "callbacks"}
    patch = next(iter(held["patches_replace"]["attn2"].values()))
    assert not any(torch.is_tensor(v) for v in vars(patch).values())


# ---------------------------------------------------------------- how often things happen

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
            lambda m, a, o, key=(b.slot, p): calls.setdefault(key, []).append(a[0].shape[1]))
        for b in scene.adapter.config.base.blocks for p in ("to_k", "to_v")
    ]
    scene.sample(model, scene.bound())
    for handle in handles:
        handle.remove()
    assert len(calls) == 140
    for lengths in calls.values():
        assert lengths.count(12) == 1 and lengths.count(77) == len(SIGMAS) - 1 and len(lengths) == len(SIGMAS)


class Syncs(TorchDispatchMode):
    """Counts the ops that make a GPU's host wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
                               torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


def loop_syncs(scene, model, positive, masks=False) -> int:
    """Syncs of one more step: a longer run minus a shorter one."""
    counts = []
    for sigmas in (SIGMAS, torch.cat([torch.tensor([5.0]), SIGMAS])):
        with Syncs() as syncs:
            scene.sample(model, positive, sigmas=sigmas)
        counts.append(syncs.count)
    return counts[1] - counts[0]


@pytest.mark.parametrize("masked", [False, True])
def test_the_sampling_loop_adds_no_host_sync(scene, masked):
    subjects = scene.subjects
    if masked:
        half = torch.zeros(16, 16)
        half[:, :8] = 1
        subjects = (subjects[0].masked(half), subjects[1].masked(1 - half))
    ours = loop_syncs(scene, apply(scene.model, scene.adapter, BOTH), scene.bound(subjects))
    assert ours == loop_syncs(scene, scene.model, scene.plain)


def test_a_window_stays_a_tensor_on_an_accelerator():
    """On anything but the CPU the decision is a tensor; here the meta device, which cannot be read at all."""
    window = Window(2.0, 1.0)
    factor = window.factor(torch.empty(1, device="meta"))
    assert torch.is_tensor(factor) and factor.device.type == "meta"


def calls_of(scene, model, positive, negative=None) -> list[int]:
    """Batch size of every UNet call of a run."""
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    scene.sample(model, positive, negative)
    handle.remove()
    return sizes


def test_one_model_call_per_step_also_beside_a_stock_negative(scene):
    steps = len(SIGMAS) - 1
    model = apply(scene.model, scene.adapter, BOTH)
    assert calls_of(scene, model, scene.bound()) == [2] * steps
    assert calls_of(scene, model, scene.bound(), carry(scene.negative, None)) == [2] * steps


# ---------------------------------------------------------------- batching and guidance

def test_one_latent_and_a_batch_of_four_agree(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    one, four = scene.sample(model, scene.bound()), scene.sample(model, scene.bound(), batch=4)
    assert torch.allclose(four, one.expand(4, -1, -1, -1), atol=1e-4)


def test_conds_run_separately_agree_with_conds_run_together(scene, monkeypatch):
    model = apply(scene.model, scene.adapter, BOTH)
    together = scene.sample(model, scene.bound())
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    monkeypatch.setattr(type(model.model), "memory_required", lambda self, shape, **kw: 0 if shape[0] == 1 else 1e18)
    apart = scene.sample(model, scene.bound())
    handle.remove()
    assert set(sizes) == {1} and len(sizes) == 2 * (len(SIGMAS) - 1)
    assert torch.allclose(together, apart, atol=1e-4)


def test_guidance_of_one_runs_only_the_conditional_row(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    assert torch.isfinite(scene.sample(model, scene.bound(), cfg=1.0)).all()
    assert not torch.allclose(scene.sample(model, scene.bound(), cfg=1.0), scene.sample(model, scene.plain, cfg=1.0), atol=1e-3)


def test_a_zeroed_out_prompt_shows_no_subject(scene):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    zeroed = [[torch.zeros_like(c), o] for c, o in scene.bound()]
    stock = [[torch.zeros_like(c), o] for c, o in scene.plain]
    assert torch.equal(scene.sample(model, scene.bound(), zeroed), scene.sample(model, scene.bound(), stock))


# ---------------------------------------------------------------- time

def test_outside_its_window_the_image_branch_does_not_act(scene):
    sampling = scene.model.get_model_object("model_sampling")
    never = apply(scene.model, scene.adapter, Strength(start=0.0, end=0.05, lora=0.0))
    assert float(sampling.percent_to_sigma(0.05)) > SIGMAS[0]
    assert torch.equal(scene.sample(never, scene.bound()), scene.sample(scene.model, scene.plain))


def test_a_window_acts_from_its_start_to_its_end(scene):
    window = Window(2.0, 1.0)
    assert [window.factor(torch.tensor([s])) for s in (2.5, 2.0, 1.5, 1.0, 0.5)] == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_delayed_prompts_run_exactly_one_half_at_every_step(scene):
    from mmdiff_core.host.conditioning import delayed
    sampling = scene.model.get_model_object("model_sampling")
    start = 0.6
    tie = float(sampling.percent_to_sigma(start))
    sigmas = torch.tensor([4.0, tie, tie / 2, 0.0])
    prompt = BoundPrompt(scene.subjects, scene.adapter.fingerprint)
    model = apply(scene.model, scene.adapter, BOTH)
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    out = scene.sample(model, delayed(scene.plain, scene.plain, prompt, start), sigmas=sigmas)
    handle.remove()
    assert sizes == [2, 2, 2] and torch.isfinite(out).all()
    assert not torch.equal(out, scene.sample(model, scene.bound(), sigmas=sigmas))


# ---------------------------------------------------------------- masks

def image_branch(q, k, v, heads, bias, gate) -> torch.Tensor:
    """What the subjects add at lambda 1, by the function that samples and trains."""
    gate = None if gate is None else gate[:, None]
    return add_image_branch(torch.zeros_like(q), q, by_head(k, heads), by_head(v, heads), 1.0, bias, gate)


def half_masks(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    left = torch.zeros(size, size)
    left[:, : size // 2] = 1
    return left, 1 - left


def test_a_subject_cannot_be_seen_from_outside_its_region():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 64, 32, generator=generator)
    k, v, other = (torch.randn(1, 8, 32, generator=generator) for _ in range(3))
    bias, gate = mask_bias(half_masks(), [4, 4], (8, 8), (8, 8), None, torch.float32, q.device)
    before = image_branch(q, k, v, 2, bias, gate)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :4], changed_v[:, :4] = other[:, :4] * 9, other[:, 4:] * 9
    after = image_branch(q, changed_k, changed_v, 2, bias, gate)
    right = half_masks()[1].flatten().bool()
    assert torch.equal(before[:, right], after[:, right])
    assert not torch.equal(before[:, ~right], after[:, ~right])


def test_where_no_subject_may_act_the_plain_model_is_left_alone():
    left, _ = half_masks()
    q, k = torch.randn(1, 64, 32), torch.randn(1, 4, 32)
    bias, gate = mask_bias([left], [4], (8, 8), (8, 8), None, torch.float32, q.device)
    seen = image_branch(q, k, k, 2, bias, gate)
    assert seen[:, ~left.flatten().bool()].abs().max() == 0 and torch.isfinite(seen).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_hide_exactly_in_half_precision(dtype):
    q, k = torch.randn(1, 64, 32).to(dtype), torch.randn(1, 8, 32).to(dtype)
    bias, gate = mask_bias(half_masks(), [4, 4], (8, 8), (8, 8), None, dtype, q.device)
    seen = image_branch(q, k, k, 2, bias, gate)
    only = image_branch(q, k[:, :4], k[:, :4], 2, None, None)
    left = half_masks()[0].flatten().bool()
    assert torch.isfinite(seen).all() and torch.allclose(seen[:, left].float(), only[:, left].float(), atol=2e-2)


def test_masks_of_all_white_are_the_same_as_no_masks(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    white = tuple(s.masked(torch.ones(16, 16)) for s in scene.subjects)
    assert torch.allclose(scene.sample(model, scene.bound(white)), scene.sample(model, scene.bound()), atol=1e-4)


def test_a_mask_is_cropped_to_the_area_a_cond_covers_not_squeezed():
    left, _ = half_masks(16)
    cropped = on_grid(left, (8, 4), (8, 8), (8, 4, 0, 4))
    assert cropped.max() < 0.1        # the right half of the picture: the mask is not there
    assert on_grid(left, (8, 4), (8, 8), (8, 4, 0, 0)).min() > 0.9


@pytest.mark.parametrize("size", [(7, 9), (8, 12), (13, 5)])
def test_masks_fit_latents_of_any_size(scene, size):
    model = apply(scene.model, scene.adapter, BOTH)
    left, right = half_masks(20)
    subjects = (scene.subjects[0].masked(left), scene.subjects[1].masked(right))
    assert torch.isfinite(scene.sample(model, scene.bound(subjects), size=size)).all()


# ---------------------------------------------------------------- precision

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_show_subjects(dtype):
    mmdiff = make.random_mmdiff(make.narrow_config("sd15"))
    scene = Scene("sd15")
    scene.model = make.narrow_model("sd15", dtype)
    out = scene.sample(apply(scene.model, mmdiff.adapter, BOTH), scene.bound())
    assert torch.isfinite(out).all()


# ---------------------------------------------------------------- errors

def test_another_kind_of_model_is_refused_with_a_sentence(scene, scene15):
    with pytest.raises(ValueError, match="70 cross-attention layers; this model has 16"):
        apply(scene15.model, scene.adapter, BOTH)

    class Other:
        diffusion_model = torch.nn.Linear(1, 1)

    class Holder:
        model = Other()

    with pytest.raises(ValueError, match="works on Stable Diffusion UNets"):
        apply(Holder(), scene.adapter, BOTH)


def test_the_same_adapter_twice_is_refused(scene):
    with pytest.raises(ValueError, match="already applied"):
        apply(apply(scene.model, scene.adapter, BOTH), scene.adapter, BOTH)


def test_two_adapters_on_one_model_each_show_their_own_subjects(scene):
    other = make.random_mmdiff(make.narrow_config("sdxl"), seed=7)
    both = apply(apply(scene.model, scene.adapter, IMAGE_ONLY), other.adapter, IMAGE_ONLY)
    one = apply(scene.model, scene.adapter, IMAGE_ONLY)
    assert torch.equal(scene.sample(both, scene.bound()), scene.sample(one, scene.bound()))
    theirs = carry(scene.plain, BoundPrompt((make.random_subject(other),), other.adapter.fingerprint))
    assert not torch.allclose(scene.sample(both, theirs), scene.sample(scene.model, scene.plain), atol=1e-3)


def test_a_patch_that_held_the_slot_is_kept_as_the_base(scene):
    seen = []

    def foreign(q, k, v, extra_options):
        seen.append(1)
        return torch.zeros_like(q)

    held = scene.model.clone()
    held.set_model_attn2_replace(foreign, "middle", 0, 3)
    model = apply(held, scene.adapter, BOTH)
    scene.sample(model, scene.bound())
    assert len(seen) == len(SIGMAS) - 1


def test_user_lora_on_keys_acts_on_both_branches(scene):
    """K_i is the layer as it stands in the model, less our text LoRA: what a user's own LoRA adds to to_k stays in."""
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    styled = scene.model.clone()
    delta = torch.randn(128, make.CONTEXT) * 0.5
    styled.add_patches({key: ("diff", (delta,))})
    model = apply(styled, scene.adapter, BOTH)
    comfy.model_management.load_model_gpu(model)
    application = Application(scene.adapter, BOTH, check_unet(model, scene.adapter))
    prompt = BoundPrompt(scene.subjects, scene.adapter.fingerprint)
    k, _ = application.make_state(prompt, model.model.diffusion_model, torch.float32, torch.device("cpu")).keys["middle", 0, 0]
    tokens = torch.cat([s.subject.tokens for s in scene.subjects])
    base = scene.model.model.state_dict()[key] if not model.backup else model.backup[key].weight
    image = scene.adapter.unet["middle_block.1.transformer_blocks.0.attn2.to_k_image"]
    assert torch.allclose(k[0].transpose(0, 1).flatten(1), tokens @ (base + delta).T + image(tokens), atol=1e-4)


def test_rows_seen_by_head_are_the_rows_themselves_however_they_lie_in_memory():
    from mmdiff_core.method.attention import by_head, rows_by_head
    whole = torch.randn(4, 6, 24)
    for x in (whole, whole.transpose(0, 1).contiguous().transpose(0, 1), torch.randn(5, 6, 48)[1:, :, ::2], torch.randn(4, 24, 6).transpose(1, 2)):
        for start, stop in ((0, 4), (1, 3), (3, 4)):
            seen = rows_by_head(x, start, stop, 3)
            assert torch.equal(seen, by_head(x[start:stop], 3))
            seen.zero_()
            assert not x[start:stop].any()
            x[start:stop] = 1.0
