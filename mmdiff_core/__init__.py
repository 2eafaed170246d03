"""MM-Diff (arXiv 2403.15059) as parts. Each row imports only from the rows above it:

    bases
    config
    method
    checkpoints · references · regions
    convert · training
    small_world
    host

Only host imports comfy, only references/faces insightface; all else is pure torch and runs without
ComfyUI.
"""
