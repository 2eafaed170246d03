"""Which device the face models run on, and how a broken GPU package is repaired."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest

from mmdiff_core.references import faces
from mmdiff_core.references.faces import runtime

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
    monkeypatch.setattr(runtime, "runtimes", lambda: {"onnxruntime": "1.32.0"})
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
    monkeypatch.setattr(runtime, "runtimes", lambda: BOTH)
    (warning,) = warnings_while_loading(face_models, caplog, "auto")
    assert "Faces run on CPUExecutionProvider" in warning
    assert "--force-reinstall --no-deps onnxruntime-gpu==1.31.1" in warning
    assert warnings_while_loading(face_models, caplog, "cpu") == []


@pytest.fixture
def cuda_that_does_not_start(monkeypatch):
    """As onnxruntime-gpu on a computer without an NVIDIA GPU."""
    original = runtime.open_session
    monkeypatch.setattr(runtime, "available_providers", lambda: GPU_BUILD)
    monkeypatch.setattr(runtime, "open_session", lambda path, _: original(path, (faces.CPU,)))


def test_cuda_that_is_offered_but_does_not_start_is_one_warning(
    face_models, caplog, cuda_that_does_not_start
):
    (warning,) = warnings_while_loading(face_models, caplog, "auto")
    assert "Faces run on CPUExecutionProvider" in warning and "could not start it" in warning
    assert "Choose device cpu" in warning


def test_cuda_that_was_asked_for_and_does_not_start_is_an_error(
    face_models, cuda_that_does_not_start
):
    with pytest.raises(RuntimeError, match="could not start it.*[Oo]r choose auto or cpu"):
        faces.load_analyser(face_models, "stand_in", "cuda")


# which package to install
@pytest.mark.parametrize(
    ("system", "machine", "cuda", "hip", "package"),
    [
        ("Linux", "x86_64", "12.8", None, "onnxruntime-gpu"),
        ("Windows", "AMD64", "12.8", None, "onnxruntime-gpu"),
        ("Linux", "aarch64", "12.8", None, "onnxruntime"),
        ("Darwin", "arm64", None, None, "onnxruntime"),
        ("Linux", "x86_64", None, "6.4", "onnxruntime"),
        ("Linux", "x86_64", None, None, "onnxruntime"),
    ],
)
def test_the_package_to_install_is_the_one_that_uses_the_gpu(
    monkeypatch, system, machine, cuda, hip, package
):
    torch = SimpleNamespace(
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(is_available=lambda: bool(cuda or hip)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(runtime.platform, "system", lambda: system)
    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    assert runtime.runtime_package() == package


def test_an_environment_without_pip_gets_commands_of_uv(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    assert runtime.install_command("a", "b") == f'uv pip install --python "{sys.executable}" a b'
    again = runtime.install_command("a==1", repair=True)
    assert again.endswith("--reinstall --no-deps a==1")
