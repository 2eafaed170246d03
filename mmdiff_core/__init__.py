"""MM-Diff (arXiv 2403.15059) as parts. Imports go one way, each line only from the lines above it:

    config · unet_layers · subjects
    attention · masks · vision · refiner · heads · lora
    adapter
    official · checkpoint · convert
    faces (insightface) · host (comfy, folder_paths)

Everything above the last line is pure torch and runs without ComfyUI.
"""
