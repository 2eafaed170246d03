"""onnxruntime: which of its packages are there, which providers they offer, and sessions.

Everything that has to be installed for faces is told here, with the command to run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...untrusted import quoted

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Left out: TensorRT and MIGraphX compile anew for every detector size; CoreML can end the process
# when it changes.
AUTOMATIC_PROVIDERS = (CUDA, "ROCMExecutionProvider", "DmlExecutionProvider", CPU)
DEVICES = ("auto", "cuda", "cpu")
# they all share one folder, and the last one installed wins
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-silicon",
)
# systems that onnxruntime-gpu has wheels for, from each of its versions
GPU_WHEELS = (("Linux", "x86_64"), ("Windows", "AMD64"))
ERRORS_ONLY = 3  # onnxruntime's log level
LONGEST_REASON = 300  # characters of another library's message


def installed() -> bool:
    """Whether there is an onnxruntime to be imported."""
    return not missing_packages()


def missing_packages(*names: str) -> list[str]:
    """Which of these packages (onnxruntime) this Python does not have."""
    return [name for name in names or ("onnxruntime",) if importlib.util.find_spec(name) is None]


def require_packages(*names: str, then: str = "") -> None:
    """ImportError that says what to run, unless these packages (onnxruntime) can be imported.

    then  what else is needed, for the end of the message
    """
    names = names or ("onnxruntime",)
    if missing := missing_packages(*names):
        wanted = [runtime_package() if name == "onnxruntime" else name for name in missing]
        raise ImportError(
            f"Faces need the Python package {' and '.join(missing)}, which this Python does not "
            f"have. Run: {install_command(*wanted)}\n{then}".rstrip()
        )
    for name in names:
        import_package(name)


def import_package(name: str) -> Any:
    """The package; ImportError that says why it cannot be imported and what to try."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        there = [package for package in runtimes() if name == "onnxruntime"] or [name]
        raise ImportError(
            f"The Python package {name} is installed but cannot be imported: {error}. Try: "
            f"{install_command(*there, repair=True)}"
        ) from error


def runtime_package() -> str:
    """The onnxruntime package for this computer: the one with CUDA where torch uses an NVIDIA GPU
    and the package has wheels for the system."""
    torch = sys.modules.get("torch")  # ComfyUI has it; nothing else is asked
    version = getattr(torch, "version", None)
    nvidia = bool(getattr(version, "cuda", None)) and torch.cuda.is_available()
    wheels = (platform.system(), platform.machine()) in GPU_WHEELS
    return "onnxruntime-gpu" if nvidia and wheels else "onnxruntime"


def install_command(*packages: str, repair: bool = False) -> str:
    """The command that installs packages into this Python, or again (`repair`)."""
    if importlib.util.find_spec("pip") is None:  # environments that uv makes
        again = "--reinstall --no-deps " if repair else ""
        return f'uv pip install --python "{sys.executable}" {again}{" ".join(packages)}'
    again = "--force-reinstall --no-deps " if repair else ""
    return f'"{sys.executable}" -m pip install {again}{" ".join(packages)}'


def runtimes() -> dict[str, str]:
    """Installed onnxruntime packages and their versions."""
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def available_providers() -> tuple[str, ...]:
    """What the installed onnxruntime offers."""
    require_packages()
    return tuple(importlib.import_module("onnxruntime").get_available_providers())


def choose_providers(
    device: str, available: Sequence[str], distributions: Mapping[str, str]
) -> tuple[str, ...]:
    """The providers to ask for, best first.

    ValueError for an unknown device, RuntimeError where CUDA is wanted and not offered.
    """
    if device not in DEVICES:
        raise ValueError(
            f"Unknown device {quoted(device)} for faces; choose one of {', '.join(DEVICES)}."
        )
    if device == "cpu":
        return (CPU,)
    if device == "cuda" and CUDA not in available:
        advice = provider_advice(distributions, available, cuda_wanted=True)
        raise RuntimeError(
            f"CUDA was chosen for faces; onnxruntime offers none. {advice}\nOr choose auto or cpu."
        )
    offered = tuple(p for p in AUTOMATIC_PROVIDERS if p in available)
    return tuple(p for p in offered if p in (CUDA, CPU)) if device == "cuda" else offered


def provider_advice(
    distributions: Mapping[str, str], available: Sequence[str], cuda_wanted: bool
) -> str | None:
    """What is wrong with the installed onnxruntime packages, and what to run; None if nothing
    is."""
    if CUDA in available:
        return None
    gpu = distributions.get("onnxruntime-gpu")
    listed = ", ".join(f"{n} {v}" for n, v in distributions.items())
    found = (
        f"Installed: {listed or 'no onnxruntime package'}; offered: "
        f"{', '.join(available) or 'nothing'}."
    )
    if gpu:
        repair = install_command(f"onnxruntime-gpu=={gpu}", repair=True)
        return (
            f"{found} The files of onnxruntime-gpu were overwritten, most likely by the CPU "
            f"package onnxruntime, which insightface and other packages ask for. Repair: {repair}"
        )
    if cuda_wanted:
        return f"{found} For an NVIDIA GPU run: {install_command('onnxruntime-gpu')}"
    return None


def preload_gpu_libraries(providers: Sequence[str]) -> None:
    """Lets onnxruntime find CUDA and cuDNN in the packages that torch brought along."""
    preload = getattr(importlib.import_module("onnxruntime"), "preload_dlls", None)
    if CUDA in providers and callable(preload):
        preload()


def open_session(path: Path, providers: Sequence[str]) -> Any:
    """An onnxruntime session of the file. Where a GPU provider cannot start, onnxruntime itself
    goes on with the CPU: `get_providers` of the session tells.

    Raises what onnxruntime raises for a file that it cannot read.
    """
    preload_gpu_libraries(providers)
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def run_session(session: Any, pixels: np.ndarray, file: str) -> list[np.ndarray]:
    """All outputs for one batch [1 3 H W] of float32. RuntimeError names the file if it fails."""
    try:
        batch = np.ascontiguousarray(pixels, np.float32)
        return session.run(None, {session.get_inputs()[0].name: batch})
    except Exception as error:
        raise RuntimeError(
            f"{file} failed on {', '.join(session.get_providers())}: {reason_of(error)}"
        ) from error


def reason_of(error: BaseException) -> str:
    """The words of another library's error on one line, cut."""
    kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())}"[:LONGEST_REASON]
