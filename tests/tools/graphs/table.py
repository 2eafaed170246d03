"""What stands in which column of each bundled graph."""

from __future__ import annotations

from .layout import Column

LOADERS = ("CheckpointLoaderSimple", "MMDiffLoad", "CLIPVisionLoader", "MMDiffLoadFaceAnalysis")
WORLD = ("MMDiffSmallWorldLoader",)
TEXT = ("MMDiffTextEncode", "KSampler")
MODELS, IMAGES, SUBJECTS, RESULT, PROMPT = 240, 230, 256, 350, 310

# more than the least that a node needs: to read a prompt, and to see an image
ROOM = {
    "MMDiffTextEncode": 340,
    "SaveImage": 450,
    "PreviewImage": 300,
    "MMDiffAttentionMaps": 420,
    "MMDiffLikeness": 560,
    "MMDiffPickBest": 620,
}
# what a node grows by when a run has put an image into it
GROWS = {"MMDiffSubjectEncoder": 240}


def numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(name if i == 0 else f"{name} {i + 1}" for i in range(count))


def graph_of(
    models: tuple[str, ...],
    images: tuple[str, ...],
    subjects: tuple[str, ...],
    below_result: tuple[str, ...] = (),
    below_prompt: tuple[str, ...] = (),
    result: str = "SaveImage",
) -> tuple[Column, ...]:
    """Models, images and subjects below the note; the result and the prompt at the top."""
    return (
        Column(MODELS, models),
        Column(IMAGES, images),
        Column(SUBJECTS, subjects),
        Column(RESULT, (result, "MMDiffApplyAttention", *below_result), below_note=False),
        Column(PROMPT, (*TEXT, "VAEDecode", *below_prompt), below_note=False),
    )


LATENT = ("EmptyLatentImage",)
SCALE = ("ImageScaleBy",)
ENCODERS = {count: numbered("MMDiffSubjectEncoder", count) for count in (1, 2)}
PHOTOS = {count: numbered("LoadImage", count) for count in (1, 2)}
SPRITES = {count: numbered("MMDiffSmallWorldSprite", count) for count in (1, 2)}

ONE = graph_of(LOADERS, (*PHOTOS[1], *LATENT), ENCODERS[1])
ONE_SPRITE = graph_of((*WORLD, *LATENT), SPRITES[1], ENCODERS[1], (), SCALE)


def two(*below_result: str) -> tuple[Column, ...]:
    return graph_of((*LOADERS, *LATENT), PHOTOS[2], ENCODERS[2], below_result)


def two_sprites(*below_result: str) -> tuple[Column, ...]:
    return graph_of((*WORLD, *LATENT), SPRITES[2], ENCODERS[2], below_result, SCALE)


PICKED = Column(RESULT, ("MMDiffLikeness", "MMDiffPickBest"), below_note=False)

LAYOUTS: dict[str, tuple[Column, ...]] = {
    "11 One person": ONE,
    "21 Delayed conditioning": ONE,
    "10 Two people": two("MMDiffFindRegions"),
    "14 Two people in boxes": two("MMDiffConstraintMasks"),
    "15 Two people, best two of eight": (*two("MMDiffFindRegions"), PICKED),
    "16 Mixed person": two("MMDiffMixSubjects"),
    "02 One subject, small world": ONE_SPRITE,
    "03 Several references, small world": ONE_SPRITE,
    "01 Two subjects, small world": two_sprites(),
    "05 Boxes, small world": two_sprites("MMDiffConstraintMasks"),
    "09 Best two of eight, small world": (*two_sprites(), PICKED),
    "07 Mixed subject, small world": two_sprites("MMDiffMixSubjects"),
    "12 One person, several photos": graph_of(
        LOADERS,
        ("LoadImageDataSetFromFolder", "ResizeAndPadImage", "RebatchImages", *LATENT),
        ENCODERS[1],
    ),
    "22 Animal or thing": graph_of(LOADERS[:3], (*PHOTOS[1], *LATENT), ENCODERS[1]),
    "18 With a style LoRA": graph_of(
        (*LOADERS[:1], "LoraLoader", *LOADERS[1:]), (*PHOTOS[1], *LATENT), ENCODERS[1]
    ),
    "20 Load saved subjects": graph_of(
        (*LOADERS[:2], *LATENT), ("MMDiffLoadSubject",), ("MMDiffLoadSubject 2",)
    ),
    "19 Save subjects": (
        Column(MODELS, LOADERS[1:]),
        Column(IMAGES, PHOTOS[2]),
        Column(SUBJECTS, ENCODERS[2]),
        Column(RESULT, ("MMDiffSaveSubject",), below_note=False),
    ),
    "13 Three people": (
        Column(IMAGES, PHOTOS[2]),
        Column(SUBJECTS, ENCODERS[2]),
        Column(IMAGES, ("LoadImage 3", *LOADERS[:2])),
        Column(SUBJECTS, ("MMDiffSubjectEncoder 3", *LOADERS[2:])),
        Column(
            RESULT,
            ("SaveImage", "MMDiffConstraintMasks", "EmptyLatentImage"),
            below_note=False,
        ),
        Column(PROMPT, (*TEXT, "MMDiffApplyAttention", "VAEDecode"), below_note=False),
    ),
    "04 Three subjects, small world": (
        Column(IMAGES, SPRITES[2]),
        Column(SUBJECTS, ENCODERS[2]),
        Column(IMAGES, ("MMDiffSmallWorldSprite 3", *WORLD, *LATENT)),
        Column(SUBJECTS, ("MMDiffSubjectEncoder 3", "MMDiffApplyAttention")),
        Column(RESULT, ("SaveImage", "KSampler"), below_note=False),
        Column(PROMPT, ("MMDiffTextEncode", "VAEDecode", *SCALE), below_note=False),
    ),
    "06 Masks, small world": (
        Column(MODELS, (*WORLD, *LATENT, "SolidMask", "SolidMask 2")),
        Column(IMAGES, SPRITES[2]),
        Column(SUBJECTS, ENCODERS[2]),
        Column(RESULT, ("SaveImage", "MMDiffConstraintMasks"), below_note=False),
        Column(PROMPT, (*TEXT, "MMDiffApplyAttention", "VAEDecode", *SCALE), below_note=False),
        Column(MODELS, ("MaskComposite", "MaskComposite 2"), below_note=False),
    ),
    "08 Attention maps, small world": (
        Column(MODELS, (*WORLD, *LATENT, "MMDiffFindRegions", "MMDiffApplyAttention")),
        Column(IMAGES, SPRITES[2]),
        Column(SUBJECTS, ENCODERS[2]),
        Column(RESULT, ("SaveImage", "MMDiffAttentionMaps"), below_note=False),
        Column(PROMPT, (*TEXT, "VAEDecode", *SCALE), below_note=False),
        Column(RESULT, ("MMDiffWatchAttention", "PreviewImage"), below_note=False),
    ),
    "17 With ControlNet": (
        Column(MODELS, LOADERS),
        Column(IMAGES, (*PHOTOS[2], *LATENT)),
        Column(SUBJECTS, (*ENCODERS[1], "ControlNetLoader", "ImageScale", "Canny")),
        Column(RESULT, ("SaveImage", "MMDiffApplyAttention", "ControlNetApplyAdvanced"), False),
        Column(PROMPT, (*TEXT, "VAEDecode"), below_note=False),
    ),
}
