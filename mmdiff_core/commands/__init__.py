"""The commands of `python -m mmdiff_core`."""
