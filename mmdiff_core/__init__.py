"""MM-Diff (arXiv 2403.15059) as parts. Each row imports only from the rows above it:

    untrusted · processes
    bases
    config
    method
    checkpoints · regions
    references
    evaluation
    training
    small_world
    host
    lab
    commands
    __main__

Only host imports comfy, only references/faces onnxruntime; all else is pure torch and runs without
ComfyUI.
"""
