"""The nodes in a real ComfyUI server.

The recorded pictures come out of a graph, and mistakes are told to the person.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmdiff_core.checkpoints.released import UNET_FILE

from support.cases import CASE, CHECKPOINT, OURS, Case, brought_checkpoint
from support.graphs import a_case_graph, executed, graph, node
from support.recorded import BEHAVIOURS, LATENTS, close
from support.server import Server


@pytest.fixture(scope="session")
def case(request) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("behaviour", ["released", "corrected"])
def test_a_graph_in_a_real_server_ends_in_the_recorded_latents(case, server: Server, behaviour):
    checkpoint = server.offer_checkpoint(brought_checkpoint(case.path.parent))
    entry = server.run(graph(case, behaviour, checkpoint))
    (saved,) = entry["outputs"]["save"]["latents"]
    latents = (
        load_file(server.output / saved["subfolder"] / saved["filename"])["latent_tensor"] * 0.13025
    )
    variant, negative_fused = next(k for k, v in BEHAVIOURS.items() if v == behaviour)
    name = "latents_final" if negative_fused or not case.slots() else "latents_final_neg_pure"
    close(latents, case[f"{variant}/run/{name}"], LATENTS, f"{behaviour} through the nodes")


def silence_images(checkpoint: Path) -> None:
    """Takes the image branch's LoRA out of a checkpoint in the released layout."""
    path = checkpoint / UNET_FILE
    weights = torch.load(path, weights_only=True)
    for name, weight in weights.items():
        if "_image.up" in name:
            weight.zero_()
    torch.save(weights, path)


def test_a_reference_folder_with_weights_and_a_checkpoint_of_its_own_runs_in_the_server(
    server: Server, tmp_path
):
    """Its adapter has no image LoRA, so that its latents tell whose checkpoint was loaded."""
    folder = tmp_path / "reference"
    shutil.copytree(OURS, folder)
    shutil.copytree(CHECKPOINT, folder / "weights/checkpoint")
    brought = Case(folder / CASE.path.name)
    silence_images(brought_checkpoint(folder))
    server.run(graph(CASE, "released"))
    prompt = graph(brought, "released", server.offer_checkpoint(brought_checkpoint(folder)))
    entry = server.run(prompt)
    assert prompt["tiny"]["inputs"]["folder"] == str(folder)
    (saved,) = entry["outputs"]["save"]["latents"]
    latents = (
        load_file(server.output / saved["subfolder"] / saved["filename"])["latent_tensor"] * 0.13025
    )
    recorded = CASE["official/run/latents_final"]
    assert 50 * LATENTS < (latents - recorded).abs().max() < 100


def test_changing_weight_mask_prompt_or_scale_encodes_no_picture_again(server: Server):
    prompt = a_case_graph()
    prompt["white"] = node("SolidMask", value=1.0, width=64, height=64)
    prompt["weights"] = node(
        "MMDiffSubjectWeights", subjects=["subject0", 0], name="", weight=1.0, per_picture=""
    )
    prompt["masks"] = node(
        "MMDiffConstraintMasks", subjects=["weights", 0], feather=0.0, mask_1=["white", 0]
    )
    prompt["text"]["inputs"]["subjects"] = ["masks", 0]
    server.run(prompt)
    changes = [
        ("apply", "fuse_scale", 0.5),
        ("text", "text", "a man<|subj|> on a boat"),
        ("guider", "cfg", 3.0),
        ("text", "start", 0.3),
        ("weights", "weight", 0.5),
        ("white", "value", 0.5),
        ("masks", "feather", 8.0),
    ]
    for name, key, value in changes:
        prompt[name]["inputs"][key] = value
        ran = executed(server, prompt)
        assert "sample" in ran and not ran & {"subject0", "case0", "mmdiff", "tiny"}, (
            f"changing {key} ran {ran}"
        )


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        ("text", "text", "a man in the snow", "0 <|subj|> markers"),
        ("text", "text", "a man<|subj|> and a dog<|subj|>", "2 <|subj|> markers"),
        ("subject0", "faces", None, "connect Load Face Analysis"),
        ("subject0", "name", " ", "has no name"),
        ("text", "negative", "a dog<|subj|>", "belongs in the positive prompt only"),
    ],
)
def test_mistakes_in_a_graph_are_told_in_a_sentence(server: Server, name, key, value, message):
    prompt = a_case_graph()
    if value is None:
        del prompt[name]["inputs"][key]
    else:
        prompt[name]["inputs"][key] = value
    with pytest.raises(RuntimeError) as error:
        server.run(prompt)
    assert message in str(error.value)


def test_a_window_that_ends_before_it_starts_is_refused_before_running(server: Server):
    prompt = a_case_graph()
    prompt["apply"]["inputs"] |= {"start_percent": 0.8, "end_percent": 0.2}
    with pytest.raises(RuntimeError, match="start_percent 0.8 must be less than end_percent 0.2"):
        server.run(prompt)


def test_every_input_and_output_has_a_tooltip(server: Server):
    info = {
        k: v
        for k, v in server.get("/object_info").items()
        if k.startswith("MMDiff") and not k.startswith(("MMDiffTest", "MMDiffLoadTiny"))
    }
    assert len(info) == 21
    for name, entry in info.items():
        for kind in ("required", "optional"):
            for key, (_, *options) in entry["input"].get(kind, {}).items():
                assert options and options[0].get("tooltip"), f"{name}.{key} has no tooltip"
        assert len(entry.get("output_tooltips", [])) == len(entry["output"]) and all(
            entry["output_tooltips"]
        ), name


def test_the_binding_is_shown_on_the_text_node(server: Server):
    entry = server.run(a_case_graph() | {"show": node("PreviewAny", source=["text", 2])})
    assert "man → s0 (1 reference, 4 tokens, weight 1)" in str(entry["outputs"])


def test_a_checkpoint_is_converted_by_its_node_and_loads_from_the_list(server: Server):
    name = "converted-by-node.safetensors"
    prompt = {
        "c": node(
            "MMDiffConvert",
            checkpoint="tiny-portrait",
            file_name=f"../{name}",
            dtype="fp16",
            behaviour="as stored",
        )
    }
    with pytest.raises(RuntimeError, match="points outside"):
        server.run(prompt)


def test_a_checkpoint_that_is_not_there_is_told_with_the_folders_searched(server: Server):
    prompt = a_case_graph()
    prompt["mmdiff"]["inputs"]["checkpoint"] = "no-such-file"
    with pytest.raises(RuntimeError, match=r"not found\. Searched: .*models|not in list"):
        server.run(prompt)


def test_a_face_that_is_not_there_is_an_error_that_names_the_picture(server: Server):
    """The real face analyser in the server, on a stand-in detector that sees one face in a grey
    image.
    """
    prompt = a_case_graph()
    prompt["faces"] = node("MMDiffLoadFaceAnalysis", model="stand_in", device="cpu")
    prompt["grey"] = node("EmptyImage", width=256, height=256, batch_size=1, color=0x808080)
    prompt["subject0"]["inputs"] |= {"faces": ["faces", 0], "image": ["grey", 0], "face": 3}
    with pytest.raises(RuntimeError, match="s0, image 1 of 1: "):
        server.run(prompt)


def test_a_saved_subject_draws_the_same_picture_and_no_picture_is_encoded(server: Server):
    prompt = a_case_graph()
    prompt["keep"] = node(
        "MMDiffSaveSubject", subjects=["subject0", 0], prefix="tests/", overwrite=True
    )
    entry = server.run(prompt)
    assert "s0.safetensors: 1 reference" in entry["outputs"]["keep"]["text"][0]
    kept = a_case_graph()
    for name in ("subject0", "case0"):
        del kept[name]
    kept["loaded"] = node(
        "MMDiffLoadSubject", mmdiff=["mmdiff", 0], file="tests/s0.safetensors", name="", weight=1.0
    )
    kept["text"]["inputs"]["subjects"] = ["loaded", 0]
    kept["save"]["inputs"]["filename_prefix"] = "from_kept"
    latents = []
    for found in (entry, server.run(kept)):
        (saved,) = found["outputs"]["save"]["latents"]
        latents.append(
            load_file(server.output / saved["subfolder"] / saved["filename"])["latent_tensor"]
        )
    assert (latents[0] == latents[1]).all()


def test_a_saved_subject_that_is_not_there_is_told_with_what_is(server: Server):
    prompt = {
        "mmdiff": node("MMDiffLoad", checkpoint="tiny-portrait"),
        "loaded": node(
            "MMDiffLoadSubject",
            mmdiff=["mmdiff", 0],
            file="nobody.safetensors",
            name="",
            weight=1.0,
        ),
        "show": node("PreviewImage", images=["loaded", 1]),
    }
    with pytest.raises(RuntimeError, match=r"there is no saved subject 'nobody|not in list"):
        server.run(prompt)


def test_mixing_and_weighing_run_in_the_server_and_encode_nothing_again(server: Server):
    prompt = a_case_graph()
    prompt["mix"] = node(
        "MMDiffMixSubjects", subjects=["subject0", 0], weights="1", method="spherical", name="mix"
    )
    prompt["weigh"] = node(
        "MMDiffSubjectWeights", subjects=["mix", 0], name="", weight=0.5, per_picture="1, 0.5"
    )
    prompt["text"]["inputs"]["subjects"] = ["weigh", 0]
    server.run(prompt)
    prompt["weigh"]["inputs"]["weight"] = 0.7
    ran = executed(server, prompt)
    assert "sample" in ran and not ran & {"subject0", "case0", "mix"}
    prompt["weigh"]["inputs"]["name"] = "nobody"
    with pytest.raises(RuntimeError, match="no subject is named 'nobody'; available: mix"):
        server.run(prompt)


def test_boxes_stay_a_socket_where_the_web_page_has_a_widget_for_them(server: Server):
    """Frontend 1.58 draws a BOUNDING_BOX input as a widget unless told otherwise, and sends its box
    of 512 x 512 px unasked.
    """
    found = {
        (name, key): options
        for name, node in server.get("/object_info").items()
        if name.startswith("MMDiff")
        for group in ("required", "optional")
        for key, (kind, options) in node["input"].get(group, {}).items()
        if kind == "BOUNDING_BOX"
    }
    assert found and all(options.get("forceInput") for options in found.values()), found
