"""MM-Diff (arXiv 2403.15059) as parts. Each row imports only from the rows above it:

    bases
    config
    method
    checkpoints · regions
    references
    training
    small_world
    host
    lab
    commands
    __main__

Only host imports comfy, only references/faces insightface; all else is pure torch and runs without
ComfyUI.
"""
