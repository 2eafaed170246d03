"""`python -m mmdiff_core train` under the name in the header of adapters that were trained by it.
"""
import sys

from ..commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
