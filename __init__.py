"""MM-Diff for ComfyUI: several given subjects in one picture (arXiv 2403.15059)."""
from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
