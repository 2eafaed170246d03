"""Where the tests and the pack lie."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PACK = TESTS.parent
PACK_NAME = "comfyui-mm-diff"
