"""Both checkpoint layouts: every key accounted for, nothing executed, errors that name what is
wrong.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mmdiff_core.bases import SD15, SDXL
from mmdiff_core.checkpoints import checkpoint, released, shapes, tensor_file
from mmdiff_core.checkpoints.checkpoint import CheckpointError
from mmdiff_core.config import CONFIGS, PORTRAIT_SDXL, MMDiffConfig

from support import make
from support.cases import CHECKPOINT, OURS
from support.damage import change, copy_checkpoint, only

MANIFEST = json.loads((OURS / "full_size_manifest.json").read_text(encoding="utf-8"))


def listed(file: str) -> dict:
    return MANIFEST["files"][file]


# ---------------------------------------------------------------- the table against the manifest,
# both ways


def upstream(shapes: dict, table: dict) -> dict:
    return {
        f"{table[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}.weight": list(v)
        for k, v in shapes.items()
    }


def test_unet_keys_and_shapes_are_exactly_the_manifests():
    found = upstream(shapes.unet_shapes(PORTRAIT_SDXL, 64), released.unet_keys(PORTRAIT_SDXL))
    assert found == listed("unet_adapter_weights.bin")["keys"]


@pytest.mark.parametrize("old_style", [False, True])
def test_text_encoder_keys_and_shapes_are_exactly_the_manifests(old_style):
    file = listed("text_encoder_adapter_weights.bin")
    sizes = {}
    for stem in released.text_keys(PORTRAIT_SDXL):
        rows, columns = shapes.text_shape(PORTRAIT_SDXL, stem)
        sizes |= {f"{stem}.down": (64, columns), f"{stem}.up": (rows, 64)}
    found = upstream(sizes, released.text_keys(PORTRAIT_SDXL, old_style))
    expected = file["keys"] | file["optional_mlp_keys"]
    names = file["old_style_names"] if old_style else {}
    assert found == {names.get(k, k): v for k, v in expected.items()}


def test_custom_weights_keys_and_shapes_are_exactly_the_manifests():
    groups = listed("custom_weights.bin")["groups"]
    table, found = released.module_keys(PORTRAIT_SDXL), {name: {} for name in released.MODULES}
    for key, shape in shapes.module_shapes(PORTRAIT_SDXL).items():
        stem, part = key.rsplit(".", 1)
        group, theirs = table[stem]
        found[group][f"{theirs}.{part}"] = list(shape)
    assert found == {name: groups[name]["keys"] for name in released.MODULES}
    assert {k: list(v) for k, v in shapes.vision_shapes(PORTRAIT_SDXL).items()} == groups[
        "image_encoder"
    ]["subset_of"]


def test_the_processor_order_is_the_manifests():
    blocks = SDXL.blocks
    for number, entry in MANIFEST["attn_processor_order"].items():
        block, attention = blocks[int(number) // 2], ("attn1", "attn2")[int(number) % 2]
        assert [*block.slot] == entry["comfyui_block"] and f"{block.path}.{attention}" == entry[
            "comfyui_module"
        ]
    assert len(MANIFEST["attn_processor_order"]) == 2 * len(blocks)


def test_sd15_has_its_sixteen_layers():
    slots = [b.slot[:2] for b in SD15.blocks]
    assert len(slots) == 16 and ("middle", 0) in slots
    assert {i for b, i in slots if b == "input"} == {1, 2, 4, 5, 7, 8}
    assert {i for b, i in slots if b == "output"} == set(range(3, 12))


# ---------------------------------------------------------------- reading and writing


def test_a_full_size_checkpoint_fits_on_the_meta_device():
    """The released sizes, without their 1.2 GB: all keys and shapes pass the check."""
    flat = {f"modules.{k}": v for k, v in shapes.module_shapes(PORTRAIT_SDXL).items()}
    flat |= {f"unet.{k}": v for k, v in shapes.unet_shapes(PORTRAIT_SDXL, 64).items()}
    flat |= {f"vision.{k}": v for k, v in shapes.vision_shapes(PORTRAIT_SDXL).items()}
    for stem in released.text_keys(PORTRAIT_SDXL):
        rows, columns = shapes.text_shape(PORTRAIT_SDXL, stem)
        flat |= {f"text.{stem}.down": (64, columns), f"text.{stem}.up": (rows, 64)}
    tensors = {k: torch.empty(v, dtype=torch.float16, device="meta") for k, v in flat.items()}
    checkpoint.check(PORTRAIT_SDXL, tensors, "full size")


def test_official_to_single_file_and_back_is_the_same_adapter(tmp_path):
    first = checkpoint.load(CHECKPOINT)
    checkpoint.convert(CHECKPOINT, tmp_path / "one.safetensors")
    checkpoint.convert(tmp_path / "one.safetensors", tmp_path / "again")
    for path in (tmp_path / "one.safetensors", tmp_path / "again"):
        again = checkpoint.load(path)
        assert again.fingerprint == first.fingerprint and again.config == first.config
        assert all(
            torch.equal(again.modules.state_dict()[k], v)
            for k, v in first.modules.state_dict().items()
        )
        assert all(
            torch.equal(again.unet[k].up, v.up) and torch.equal(again.unet[k].down, v.down)
            for k, v in first.unet.items()
        )
        assert set(again.text) == set(first.text) and set(again.vision) == set(first.vision)
    for name in released.FILES:
        ours, theirs = (
            torch.load(p / name, weights_only=True) for p in (tmp_path / "again", CHECKPOINT)
        )
        assert set(ours) == set(theirs)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_single_file_holds_its_dtype_and_config(tmp_path, dtype):
    checkpoint.convert(CHECKPOINT, tmp_path / "a.safetensors", dtype, "corrected")
    config, flat = checkpoint.read_single(tmp_path / "a.safetensors")
    assert {t.dtype for t in flat.values()} == {
        checkpoint.DTYPES[dtype]
    } and config.behaviour == "corrected"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda c: c.name)
def test_configs_survive_their_header(config):
    assert MMDiffConfig.from_json(config.to_json()) == config and CONFIGS[config.name] is config


def test_the_general_variant_and_sd15_save_and_load(tmp_path):
    config = make.narrow_config("sd15")
    flat = make.random_tensors(config)
    checkpoint.save_single(tmp_path / "g.safetensors", config, flat, torch.float32)
    again, tensors = checkpoint.read(tmp_path / "g.safetensors")
    assert again == config and all(torch.equal(tensors[k], v) for k, v in flat.items())


def test_text_encoder_lora_in_upstreams_older_spelling_loads(tmp_path):
    copy_checkpoint(tmp_path)
    new, old = (released.text_keys(checkpoint.load(CHECKPOINT).config, o) for o in (False, True))
    rename = {new[k]: old[k] for k in new}
    change(
        tmp_path / released.TEXT_FILE,
        lambda sd: {
            f"{rename[k.rsplit('.', 2)[0]]}.{'.'.join(k.rsplit('.', 2)[1:])}": v
            for k, v in sd.items()
        },
    )
    assert checkpoint.load(tmp_path).fingerprint == checkpoint.load(CHECKPOINT).fingerprint


def test_the_text_encoders_mlp_may_be_untrained(tmp_path):
    copy_checkpoint(tmp_path)
    change(tmp_path / released.TEXT_FILE, only(lambda key: "mlp" not in key))
    assert len(checkpoint.load(tmp_path).text) == 24


def test_the_image_encoder_may_be_any_part_of_the_tower(tmp_path):
    copy_checkpoint(tmp_path)
    change(
        tmp_path / released.CUSTOM_FILE,
        lambda sd: (
            sd
            | {
                "image_encoder": {
                    "visual_projection.weight": sd["image_encoder"]["visual_projection.weight"],
                    "vision_model.embeddings.position_ids": torch.arange(50)[None],
                }
            }
        ),
    )
    assert set(checkpoint.load(tmp_path).vision) == {"visual_projection.weight"}


# ---------------------------------------------------------------- errors


def changed_group(group: str, edit):
    return lambda sd: sd | {group: edit(dict(sd[group]))}


KEY = "7.to_k_lora_image.down.weight"


@pytest.mark.parametrize(
    "file, edit, message",
    [
        (
            released.UNET_FILE,
            only(lambda key: key != KEY),
            r"missing key unet\.\S+to_k_image\.down",
        ),
        (
            released.UNET_FILE,
            lambda sd: sd | {"7.to_k_ip.weight": torch.zeros(2)},
            r"unknown key 7\.to_k_ip\.weight \(2,\)",
        ),
        (
            released.UNET_FILE,
            lambda sd: sd | {KEY: sd[KEY][:, :9]},
            r"to_k_image\.down has shape \(64, 9\), expected \(64, 256\)",
        ),
        (
            released.UNET_FILE,
            only(lambda key: int(key.split(".")[0]) < 20),
            "20? attention layers|known bases",
        ),
        (
            released.TEXT_FILE,
            lambda sd: sd | {"lora_te_text_model.alpha": torch.ones(1)},
            r"unknown key lora_te_text_model\.alpha",
        ),
        (
            released.TEXT_FILE,
            lambda sd: dict(list(sd.items())[:-1]),
            r"missing key text\.g\.layers\.2",
        ),
        (
            released.CUSTOM_FILE,
            only(lambda key: key != "mm_fuse_two"),
            r"groups missing \['mm_fuse_two'\]",
        ),
        (
            released.CUSTOM_FILE,
            changed_group("image_encoder", lambda g: g | {"text_model.x": torch.ones(1)}),
            r"unknown key vision\.text_model\.x",
        ),
        (
            released.CUSTOM_FILE,
            changed_group("obj_embeds_proj", lambda g: g | {"fc3.weight": torch.ones(1)}),
            r"unknown key obj_embeds_proj\.fc3\.weight",
        ),
        (
            released.CUSTOM_FILE,
            changed_group("mm_fuse_one", lambda g: g | {"fc1.bias": torch.ones(5)}),
            r"fuse\.l\.hidden\.bias has shape \(5,\)",
        ),
        (
            released.CUSTOM_FILE,
            changed_group(
                "mm_fuse_one", lambda g: g | {"fc1.bias": torch.ones(96, dtype=torch.int64)}
            ),
            "not a float16",
        ),
    ],
)
def test_wrong_keys_are_named_with_what_was_found_and_expected(tmp_path, file, edit, message):
    copy_checkpoint(tmp_path)
    change(tmp_path / file, edit)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    copy_checkpoint(tmp_path)
    (tmp_path / released.TEXT_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="text_encoder_adapter_weights.bin not found"):
        checkpoint.load(tmp_path)


class Dangerous:
    ran: list = []

    def __reduce__(self):
        return (Dangerous.ran.append, (1,))


def test_a_file_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path):
    copy_checkpoint(tmp_path)
    torch.save({"0.to_q_lora.up.weight": Dangerous()}, tmp_path / released.UNET_FILE)
    with pytest.raises(
        CheckpointError, match="unet_adapter_weights.bin contains more than weights"
    ):
        checkpoint.load(tmp_path)
    assert not Dangerous.ran


@pytest.mark.parametrize("damage", [b"", b"not a file of weights", None])
def test_a_damaged_download_is_said_to_be_one(tmp_path, damage):
    copy_checkpoint(tmp_path)
    path = tmp_path / released.CUSTOM_FILE
    path.write_bytes(path.read_bytes()[:100_000] if damage is None else damage)
    with pytest.raises(CheckpointError, match="custom_weights.bin"):
        checkpoint.load(tmp_path)


def test_somebody_elses_safetensors_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"image_proj.latents": torch.zeros(2)}, tmp_path / "ip.safetensors")
    with pytest.raises(CheckpointError, match="is not an MM-Diff checkpoint"):
        checkpoint.load(tmp_path / "ip.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(CheckpointError, match="is the download complete"):
        checkpoint.load(tmp_path / "cut.safetensors")


def test_a_config_that_does_not_fit_its_tensors_is_refused(tmp_path):
    config, flat = checkpoint.read(CHECKPOINT)
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.check(replace(config, base=replace(config.base, context_width=512)), flat, "x")


def test_an_interrupted_write_leaves_no_file_under_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tensor_file, "save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        checkpoint.convert(CHECKPOINT, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
