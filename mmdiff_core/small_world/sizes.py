"""Sizes of the small world's models, as ComfyUI and transformers name them, and of its adapter.

An image of 128 px is 32 x 32 dots of 4 px. A latent is 16 x 16 with the four dots under it as
channels (3 x 4 = 12), so that one latent position is 8 px, as everywhere in ComfyUI.
"""

from __future__ import annotations

from ..config import SMALL_WORLD as ADAPTER

DOT = 4  # px of a picture per dot
FOLD = 2  # dots per latent position, in each direction
CHANNELS = 3 * FOLD * FOLD
LATENT_SCALE = 1.6  # latents of unit variance

UNET = {
    "image_size": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 64,
    "num_res_blocks": [0, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 128,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "adm_in_channels": None,
    "legacy": False,
    "use_temporal_attention": False,
}
# columns of a prompt: the longest caption has 19; a longer prompt is cut into chunks of this length
TOKENS = 24
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": TOKENS,
    "projection_dim": 128,
    "vocab_size": 49408,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
    "model_type": "clip_text_model",
}
VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "hidden_act": "quick_gelu",
    "image_size": 32,
    "patch_size": 4,
    "num_channels": 3,
    "projection_dim": 128,
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
}

# What its pictures are drawn with, in KSampler's words; the bundled workflows and the demo have
# the same (a test compares them).
SAMPLING = {"steps": 20, "cfg": 3.0, "sampler_name": "euler_ancestral", "scheduler": "sgm_uniform"}

__all__ = [
    "ADAPTER",
    "CHANNELS",
    "DOT",
    "FOLD",
    "LATENT_SCALE",
    "SAMPLING",
    "TEXT",
    "TOKENS",
    "UNET",
    "VISION",
]
