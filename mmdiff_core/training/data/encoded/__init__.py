"""What of a data set does not change from step to step, made once: latents, cutouts, faces.

A folder of them has a manifest.json, which says what they were made with, and shards, which hold
them by the hash of the image and masks that they were made of.
"""
