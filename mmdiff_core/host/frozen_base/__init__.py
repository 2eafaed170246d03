"""ComfyUI's models as the frozen base of a training run. Not for models that a graph is using."""
