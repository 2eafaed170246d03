"""The commands of `python -m mmdiff_core`: their help is light, and an error is one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff_core.checkpoints import checkpoint
from mmdiff_core.commands import COMMANDS, convert, main

from support.cases import CHECKPOINT

PACK = Path(__file__).resolve().parents[2]


def test_the_help_lists_every_command_and_needs_neither_torch_nor_comfyui():
    code = (
        "import sys\n"
        "from mmdiff_core.commands import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    print(sorted({'torch', 'comfy', 'numpy', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACK, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")]
    assert set(COMMANDS) <= set(lines)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


def test_an_error_that_a_person_can_put_right_is_one_line(tmp_path, capsys):
    gone = str(tmp_path / "gone.safetensors")
    assert main(["shrink", gone, str(tmp_path / "smaller.safetensors"), "--rank", "4"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "gone.safetensors" in said


def test_the_convert_command_says_what_it_wrote_and_what_is_wrong(tmp_path, capsys):
    assert (
        main(["convert", str(CHECKPOINT), str(tmp_path / "x.safetensors"), "--dtype", "bf16"]) == 0
    )
    assert "423 tensors" in capsys.readouterr().out
    assert main(["convert", str(tmp_path), str(tmp_path / "y.safetensors")]) == 1
    assert "not found" in capsys.readouterr().err


def test_the_convert_command_offers_every_type_that_a_checkpoint_can_have():
    assert sorted(convert.DTYPES) == sorted(checkpoint.DTYPES)
