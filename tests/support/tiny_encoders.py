"""CLIP, DINO and DINOv2, tiny, in folders as `save_pretrained` writes them.

Their weights follow from a formula, not from a generator, so that numbers recorded once hold with
every version of torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
SMALL |= {"intermediate_size": 32}
NAMES = {"clip": "clip-vit-base-patch32", "large": "clip-vit-large-patch14"}
NAMES |= {"dino": "dino-vits16", "dino8": "dino-vits8", "dinov2": "dinov2-small"}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_encoders(folder: Path) -> Path:
    """Writes a folder for each of NAMES."""
    import transformers as T

    for name in ("clip", "large"):
        model = T.CLIPModel(_clip(T, 64 if name == "clip" else 96))
        _save(model, folder / NAMES[name])
        _processor(T, folder / NAMES[name]).save_pretrained(folder / NAMES[name])
    for name, patch in (("dino", 56), ("dino8", 28)):
        config = T.ViTConfig(**SMALL, image_size=224, patch_size=patch)
        _save(T.ViTModel(config, add_pooling_layer=False), folder / NAMES[name])
    config = T.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    _save(T.Dinov2Model(config), folder / NAMES["dinov2"])
    T.BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}
    ).save_pretrained(folder / NAMES["dinov2"])
    return folder


def _clip(T, side: int):
    text = {**SMALL, "vocab_size": 64, "max_position_embeddings": 24}
    text |= {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    return T.CLIPConfig(text_config=text, vision_config=vision, projection_dim=side // 4)


def _processor(T, folder: Path):
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = T.CLIPTokenizer.from_pretrained(folder)
    images = T.CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=MEAN,
        image_std=STD,
    )
    return T.CLIPProcessor(images, tokenizer)


@torch.no_grad()
def _save(model, folder: Path) -> None:
    for number, (name, weight) in enumerate(sorted(model.named_parameters())):
        steps = torch.arange(weight.numel(), dtype=torch.float64)
        wave = torch.sin(steps * 12.9898 + number * 78.233) * 43758.5453
        middle = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weight.copy_((middle + (wave - wave.floor() - 0.5)).reshape(weight.shape))
    model.save_pretrained(folder)


def picture(number: int, width: int = 90, height: int = 70):
    """An RGB image that differs with its number, made of waves; the same everywhere."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:height, :width]
    waves = [(x * (number % 7 + 1 + c) + y * (number % 5 + 2 * c + 1)) % 256 for c in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))
