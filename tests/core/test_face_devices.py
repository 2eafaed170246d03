"""Which device the face models run on, and how a broken GPU package is repaired."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime
import pytest

from mmdiff_core.references import faces

GPU_BUILD = ("TensorrtExecutionProvider", faces.CUDA, faces.CPU)

BOTH = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}


# providers
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (("AzureExecutionProvider", faces.CPU), (faces.CPU,)),
        (GPU_BUILD, (faces.CUDA, faces.CPU)),
        ((faces.CPU, "DmlExecutionProvider"), ("DmlExecutionProvider", faces.CPU)),
        (("CoreMLExecutionProvider", faces.CPU), (faces.CPU,)),
        (
            ("MIGraphXExecutionProvider", "ROCMExecutionProvider", faces.CPU),
            ("ROCMExecutionProvider", faces.CPU),
        ),
    ],
)
def test_auto_follows_what_onnxruntime_offers(monkeypatch, offered, chosen):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(offered))
    assert faces.available_providers() == offered
    assert faces.choose_providers("auto", faces.available_providers(), {}) == chosen
    assert faces.choose_providers("cpu", faces.available_providers(), {}) == (faces.CPU,)


def test_cuda_asks_for_cuda_and_cpu_only():
    assert faces.choose_providers("cuda", ("DmlExecutionProvider", *GPU_BUILD), BOTH) == (
        faces.CUDA,
        faces.CPU,
    )


def test_the_analyser_tells_the_providers_that_are_active(analyser):
    assert analyser.providers == (faces.CPU,)


def test_cuda_where_there_is_none_names_what_is_installed(face_models, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [faces.CPU])
    monkeypatch.setattr(faces, "runtimes", lambda: {"onnxruntime": "1.32.0"})
    with pytest.raises(RuntimeError) as error:
        faces.load_analyser(face_models, "stand_in", "cuda")
    for part in (
        "onnxruntime 1.32.0",
        faces.CPU,
        "-m pip install onnxruntime-gpu",
        "choose auto or cpu",
    ):
        assert part in str(error.value)


def test_an_unknown_device_lists_the_devices(face_models):
    with pytest.raises(ValueError, match="'gpu'.*auto, cuda, cpu"):
        faces.load_analyser(face_models, "stand_in", "gpu")


def test_an_overwritten_gpu_package_gets_a_one_line_repair():
    advice = faces.provider_advice(BOTH, [faces.CPU], cuda_wanted=False)
    assert "onnxruntime 1.32.0, onnxruntime-gpu 1.31.1" in advice
    assert "-m pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1" in advice


@pytest.mark.parametrize("distributions", [BOTH, {"onnxruntime-gpu": "1.31.1"}, {}])
def test_there_is_no_advice_where_cuda_is_offered(distributions):
    assert faces.provider_advice(distributions, GPU_BUILD, cuda_wanted=True) is None


def test_a_cpu_package_is_fine_until_cuda_is_wanted():
    only = {"onnxruntime": "1.32.0"}
    assert faces.provider_advice(only, [faces.CPU], cuda_wanted=False) is None
    assert "-m pip install onnxruntime-gpu" in faces.provider_advice(
        only, [faces.CPU], cuda_wanted=True
    )
    assert "no onnxruntime package" in faces.provider_advice({}, [], cuda_wanted=True)


def warnings_while_loading(
    face_models: Path, caplog: pytest.LogCaptureFixture, device: str
) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, faces.__name__):
        faces.load_analyser(face_models, "stand_in", device)
    return [record.getMessage() for record in caplog.records if record.name == faces.__name__]


def test_the_overwritten_state_is_one_warning_when_loading(face_models, monkeypatch, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [faces.CPU])
    monkeypatch.setattr(faces, "runtimes", lambda: BOTH)
    (warning,) = warnings_while_loading(face_models, caplog, "auto")
    assert "Faces run on CPUExecutionProvider" in warning
    assert "--force-reinstall --no-deps onnxruntime-gpu==1.31.1" in warning
    assert warnings_while_loading(face_models, caplog, "cpu") == []


def test_cuda_that_is_offered_but_does_not_start_is_one_warning(face_models, monkeypatch, caplog):
    monkeypatch.setattr(faces, "available_providers", lambda: GPU_BUILD)
    monkeypatch.setattr(faces, "choose_providers", lambda *_: (faces.CUDA, faces.CPU))
    original = faces._open
    monkeypatch.setattr(faces, "_open", lambda root, name, _: original(root, name, (faces.CPU,)))
    (warning,) = warnings_while_loading(face_models, caplog, "auto")
    assert "could not start it" in warning
    assert "Choose device cpu" in warning
