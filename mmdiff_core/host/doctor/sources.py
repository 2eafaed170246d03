"""What a person gets themselves: from which page, for which folder, under which licence."""

from __future__ import annotations

from dataclasses import dataclass

FACE_PACK = "buffalo_l"  # what the released checkpoint was trained with
RELEASED = "portrait_generation"  # the folder of the released checkpoint


@dataclass(frozen=True)
class Source:
    """Something a person gets themselves: from which page, for which folder below models/, under
    which licence."""

    what: str
    page: str
    place: str
    licence: str

    def __str__(self) -> str:
        return (
            f"Get {self.what} from {self.page}, put it into models/{self.place}. Licence: "
            f"{self.licence}."
        )


SOURCES = {
    "mmdiff": Source(
        f"{RELEASED} (three .bin files, linked from the README there)",
        "https://github.com/alibaba/mm-diff",
        f"mmdiff/{RELEASED}/",
        "not stated by its authors",
    ),
    "checkpoints": Source(
        "SDXL base 1.0, or a fine-tune of it",
        "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0",
        "checkpoints",
        "its own, see that page",
    ),
    "clip_vision": Source(
        "CLIP ViT-L/14 (model.safetensors)",
        "https://huggingface.co/openai/clip-vit-large-patch14",
        "clip_vision",
        "MIT",
    ),
    "insightface": Source(
        FACE_PACK,
        "https://github.com/deepinsight/insightface",
        f"insightface/models/{FACE_PACK}/",
        "non-commercial research only",
    ),
}
