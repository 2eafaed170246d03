"""MM-Diff for ComfyUI: several given subjects in one picture (arXiv 2403.15059)."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
