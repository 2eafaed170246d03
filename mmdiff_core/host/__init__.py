"""The only part that imports comfy and folder_paths: files, model patchers, encoders, conditioning,
attention slots."""
