"""ComfyUI's own nodes on the same model, before and after ours: nothing crashes, and both act."""

from __future__ import annotations

import pytest
import torch
from comfy_extras import (
    nodes_apg,
    nodes_cfg,
    nodes_freelunch,
    nodes_hypertile,
    nodes_model_downscale,
    nodes_model_merging,
    nodes_pag,
    nodes_sag,
    nodes_tcfg,
    nodes_tomesd,
)

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import carry

from support.neighbours import check_beside_ours, draw, narrow_controlnet
from support.scene import BOTH, IMAGE_ONLY, STEPS, close

LIKE = "sd15"  # fewer layers than SDXL, so more graphs


def downscale(model):
    return nodes_model_downscale.PatchModelAddDownscale.execute(
        model, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"
    ).args[0]


def style_lora(model):
    patched = model.clone()
    weights = {
        k: v
        for k, v in model.model.state_dict().items()
        if k.endswith(("to_k.weight", "to_v.weight", "to_q.weight"))
    }
    generator = torch.Generator().manual_seed(3)
    patched.add_patches(
        {
            k: ("diff", (0.1 * torch.randn(v.shape, generator=generator),))
            for k, v in weights.items()
        }
    )
    return patched


def rescale_cfg(model):
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, 0.7)[0]


def mixed_self_attention(model):
    """A patch on the self-attention's output that looks at both rows, as NAGuidance of newer hosts
    sets it.
    """

    def away_from_uncond(out, extra_options):
        kinds = extra_options["cond_or_uncond"]
        if sorted(kinds) == [0, 1]:
            rows = list(out.chunk(2))
            rows[kinds.index(0)] = 1.5 * rows[kinds.index(0)] - 0.5 * rows[kinds.index(1)]
            out = torch.cat(rows)
        return out

    patched = model.clone()
    patched.set_model_attn1_output_patch(away_from_uncond)
    return patched


CORE_NODES = {
    "APG": lambda m: _first(nodes_apg.APG.execute(m, 1.0, 5.0, 0.5)),
    "TCFG": lambda m: _first(nodes_tcfg.TCFG.execute(m)),
    "CFGZeroStar": lambda m: _first(nodes_cfg.CFGZeroStar.execute(m)),
    "as NAGuidance": mixed_self_attention,
    "FreeU_V2": lambda m: nodes_freelunch.FreeU_V2().patch(m, 1.3, 1.4, 0.9, 0.2)[0],
    "HyperTile": lambda m: _first(nodes_hypertile.HyperTile.execute(m, 32, 2, 0, False)),
    "PatchModelAddDownscale": downscale,
    "TomePatchModel": lambda m: _first(nodes_tomesd.TomePatchModel.execute(m, 0.5)),
    "PerturbedAttentionGuidance": lambda m: _first(
        nodes_pag.PerturbedAttentionGuidance.execute(m, 3.0)
    ),
    "SelfAttentionGuidance": lambda m: _first(nodes_sag.SelfAttentionGuidance.execute(m, 0.8, 2.0)),
    "RescaleCFG": rescale_cfg,
    "a style LoRA": style_lora,
}


def _first(result):
    return result.args[0] if hasattr(result, "args") else result[0]


@pytest.mark.parametrize("node", CORE_NODES)
def test_core_nodes_before_and_after_ours_act_and_leave_the_subjects(scene, node):
    check_beside_ours(scene, CORE_NODES[node])


@pytest.mark.parametrize("ours_first", [True, False])
def test_merging_models_keeps_the_subjects(scene, ours_first):
    """ModelMergeSimple takes the first model's options and clones it.

    Its weights blend with the second's.
    """
    other = style_lora(scene.model)
    ours = apply(scene.model, scene.adapter, BOTH)
    merged = (
        nodes_model_merging.ModelMergeSimple().merge(ours, other, 0.5)[0]
        if ours_first
        else apply(
            nodes_model_merging.ModelMergeSimple().merge(scene.model, other, 0.5)[0],
            scene.adapter,
            BOTH,
        )
    )
    found = draw(scene, merged, scene.bound())
    assert torch.isfinite(found).all() and not close(
        found, draw(scene, merged, carry(scene.plain, None))
    )


def test_a_users_lora_before_or_after_ours_makes_the_same_picture(scene):
    before, after = (
        apply(style_lora(scene.model), scene.adapter, BOTH),
        style_lora(apply(scene.model, scene.adapter, BOTH)),
    )
    assert close(draw(scene, before, scene.bound()), draw(scene, after, scene.bound()))
    assert not close(
        draw(scene, before, scene.bound()),
        draw(scene, apply(scene.model, scene.adapter, BOTH), scene.bound()),
    )


def test_a_lora_hook_acts_on_its_prompts_text_and_the_subjects_show(scene):
    """Create Hook LoRA: the subjects' keys and values are made once a run, from the weights without
    hooks.
    """
    import comfy.hooks

    generator, lora = torch.Generator().manual_seed(6), {}
    for key, weight in scene.model.model.state_dict().items():
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight", "attn1.to_q.weight")):
            name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(
                ".weight"
            ).replace(".", "_")
            lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
            lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(
                4, weight.shape[1], generator=generator
            )
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)

    def hooked(positive):
        return comfy.hooks.set_hooks_for_conditioning(positive, hooks)

    ours = apply(scene.model, scene.adapter, BOTH)
    pictures = [
        draw(scene, ours, p, cfg=3.0)
        for p in (scene.bound(), hooked(scene.bound()), hooked(carry(scene.plain, None)))
    ]
    assert all(torch.isfinite(p).all() for p in pictures)
    assert not any(close(a, b) for a, b in ((pictures[0], pictures[1]), (pictures[1], pictures[2])))


def test_a_controlnet_steers_while_the_subjects_show(scene):
    import nodes as host_nodes

    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    control = narrow_controlnet()
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)

    def steered(positive):
        found = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
            positive, scene.negative, control, hint, 1.0, 0.0, 1.0
        )
        return draw(scene, ours, found[0], cfg=3.0, sigmas=STEPS, negative=found[1])

    both, control_alone = steered(scene.bound()), steered(scene.plain)
    assert torch.isfinite(both).all() and not close(both, control_alone)
    assert not close(both, draw(scene, ours, scene.bound(), cfg=3.0, sigmas=STEPS))


def test_patches_in_the_transformer_as_gligen_sets_them_run_beside_ours(scene):
    seen = []

    def middle(x, extra_options):
        seen.append(extra_options["block"])
        return x + 0.3 * torch.sin(x)

    patched = apply(scene.model, scene.adapter, IMAGE_ONLY).clone()
    patched.set_model_patch(middle, "middle_patch")
    found = draw(scene, patched, scene.bound())
    assert len(seen) == 16 and not close(
        found, draw(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), scene.bound())
    )
