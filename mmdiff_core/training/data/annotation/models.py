"""The models of the annotation, each from a local folder as transformers' `save_pretrained` writes.

Shapes   H W image · n boxes · Q queries · T tokens of the prompt
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from ....untrusted import quoted
from .pipeline import Box, Detection, Models

# model_type in config.json -> transformers' names of the processor and the model
CAPTIONERS = {
    "blip": ("BlipProcessor", "BlipForConditionalGeneration"),
    "blip-2": ("Blip2Processor", "Blip2ForConditionalGeneration"),
}
GROUNDERS = {"grounding-dino": ("GroundingDinoProcessor", "GroundingDinoForObjectDetection")}
SEGMENTERS = {
    "sam": ("SamProcessor", "SamModel"),
    "sam2": ("Sam2Processor", "Sam2Model"),
    "sam2_video": ("Sam2Processor", "Sam2Model"),
}


class LocalModel:
    """A processor and a model of one of the `known` types from a local folder.

    ValueError when the folder holds no such model.
    """

    def __init__(
        self,
        folder: Path,
        known: Mapping[str, tuple[str, str]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        names = known[_model_type(folder, known)]
        processor, model = (getattr(transformers, name, None) for name in names)
        if processor is None or model is None:
            raise ValueError(
                f"transformers {transformers.__version__} is too old for the model in {folder}; "
                "update it"
            )
        try:
            self.processor = processor.from_pretrained(folder, local_files_only=True)
            loaded = model.from_pretrained(folder, local_files_only=True)
        except (OSError, KeyError) as error:
            raise ValueError(f"the model in {folder} cannot be loaded: {error}") from error
        self.model = loaded.to(device, dtype).eval()
        self.device, self.dtype = device, dtype

    def prepared(self, **inputs: Any) -> Mapping[str, Tensor]:
        """What the processor makes of these inputs, on the model's device and in its type."""
        return self.processor(return_tensors="pt", **inputs).to(self.device, self.dtype)


def _model_type(folder: Path, known: Mapping[str, Any]) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not the JSON of a config"
        raise ValueError(
            f"{folder} is no folder of a transformers model: its config.json cannot be read "
            f"({reason})"
        ) from error
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"the model in {folder} is a {quoted(kind)}, expected one of {', '.join(known)}"
        )
    return kind


class BlipCaptioner(LocalModel):
    """BLIP or BLIP-2; in half precision on a GPU, as in the published demo."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        super().__init__(folder, CAPTIONERS, device, dtype)

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        tokens = self.model.generate(**self.prepared(images=image), max_new_tokens=40)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


class DinoGrounder(LocalModel):
    """Grounding DINO: a query with a score above `threshold` is a detection of its best word."""

    def __init__(self, folder: Path, device: torch.device, threshold: float = 0.3) -> None:
        super().__init__(folder, GROUNDERS, device)
        self.threshold = threshold

    @torch.inference_mode()
    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]:
        prompt = " ".join(f"{word.lower()}." for word in words)
        out = self.model(**self.prepared(images=image, text=prompt))
        match = out.logits[0].float().sigmoid().cpu()
        scores, best = word_scores(match, self._tokens(prompt, words)).max(1)
        boxes = box_convert(out.pred_boxes[0].float().cpu(), "cxcywh", "xyxy")
        boxes = boxes * torch.tensor([*image.size] * 2)
        detections = []
        for q in (scores > self.threshold).nonzero().flatten().tolist():
            box = tuple(boxes[q].tolist())
            detections.append(Detection(words[best[q]], box, float(scores[q])))
        return detections

    def _tokens(self, prompt: str, words: Sequence[str]) -> list[list[int]]:
        """The positions of each word's tokens in the prompt."""
        offsets = self.processor.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        tokens, start = [], 0
        for word in words:
            end = start + len(word)
            tokens.append([t for t, (a, b) in enumerate(offsets) if start <= a < b <= end])
            start = end + 2  # ". "
        return tokens


def word_scores(match: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Match of queries and tokens [Q T] in 0..1 -> of queries and words [Q words].

    The score of a word is the mean over its tokens; 0 for a word without tokens.
    """
    nothing = match.new_zeros(len(match))
    scores = [match[:, list(own)].mean(1) if own else nothing for own in tokens]
    return torch.stack(scores, 1)


class SamSegmenter(LocalModel):
    """SAM or SAM 2, one mask per box."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder, SEGMENTERS, device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> np.ndarray:
        wanted = [list(map(float, box)) for box in boxes]
        inputs = self.prepared(images=image, input_boxes=[wanted])
        out = self.model(
            pixel_values=inputs["pixel_values"],
            input_boxes=inputs["input_boxes"],
            multimask_output=False,
        )
        # the second of these: SAM only
        sizes = [inputs[k].cpu() for k in ("original_sizes", "reshaped_input_sizes") if k in inputs]
        masks = self.processor.post_process_masks(out.pred_masks.cpu(), *sizes)[0]  # n 1 H W
        return masks[:, 0].numpy()


def load_models(
    captioner: Path | None,
    grounder: Path,
    segmenter: Path,
    device: torch.device,
    threshold: float,
) -> Models:
    """The three models from their folders. ValueError names the folder that does not fit."""
    caption = BlipCaptioner(captioner, device) if captioner else None
    ground = DinoGrounder(grounder, device, threshold)
    return Models(caption, ground, SamSegmenter(segmenter, device))
