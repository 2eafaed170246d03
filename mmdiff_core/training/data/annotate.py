"""Command: pictures in a folder -> training records: a caption, the class nouns in it, a box and a mask for each.

    python -m mmdiff_core.training.annotate FOLDER OUT.jsonl --captioner DIR --grounder DIR --segmenter DIR

A picture's own caption, NAME.txt beside it, comes before the captioner's. Models are local folders as `save_pretrained` writes them:
BLIP or BLIP-2, Grounding DINO, SAM or SAM 2. Start again with the same OUT to go on. Beside OUT: OUT_rejected.jsonl, a line with the
reason for each picture left out (delete it to try them again), and OUT_previews/, every so often a picture with what was found.

Shapes   H W picture · n boxes · Q queries · T tokens of the prompt
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_convert, nms

from .records import PICTURES, BrokenRecord, Stored, decode_rle, encode_rle, read_picture

log = logging.getLogger(__name__)

CLASSES = """
man, woman, boy, girl, baby, child, kid, person, lady, guy, gentleman, bride, groom, player, skier, snowboarder, surfer, skateboarder,
rider, chef, clown, soldier, policeman, fireman, dog, puppy, cat, kitten, horse, pony, cow, calf, bull, sheep, lamb, goat, pig, piglet,
chicken, hen, rooster, duck, goose, swan, bird, parrot, owl, eagle, penguin, pigeon, peacock, flamingo, elephant, bear, polar bear,
teddy bear, panda, zebra, giraffe, lion, tiger, leopard, cheetah, wolf, fox, deer, moose, camel, monkey, gorilla, rabbit, squirrel,
hamster, hedgehog, mouse, turtle, tortoise, frog, lizard, snake, crocodile, dinosaur, dragon, fish, shark, dolphin, whale, seal, crab,
lobster, butterfly, bee, ladybug, spider, car, truck, van, bus, train, tram, motorcycle, scooter, bicycle, bike, tractor, airplane,
plane, helicopter, boat, ship, sailboat, canoe, fire hydrant, stop sign, parking meter, bench, chair, armchair, sofa, couch, bed, table,
desk, lamp, clock, vase, mirror, piano, guitar, violin, drum, trumpet, backpack, handbag, purse, suitcase, umbrella, hat, cap, helmet,
shoe, boot, sneaker, dress, jacket, coat, shirt, tie, watch, necklace, mug, cup, teapot, bottle, bowl, plate, pot, pan, cake, pizza,
sandwich, hamburger, hot dog, donut, apple, banana, orange, pear, pineapple, strawberry, pumpkin, carrot, book, laptop, computer,
keyboard, phone, camera, television, microwave, oven, toaster, refrigerator, sink, toilet, doll, toy, robot, statue, ball, basketball,
football, balloon, kite, skateboard, surfboard, snowboard, flower, rose, sunflower, tree, cactus, plant, castle, church, lighthouse,
windmill, barn, tent
"""
HALTING = 5             # so many model failures in a row are the models', not the pictures'


class Found(NamedTuple):
    """A detection: box x0, y0, x1, y1 in pixels, score in 0..1."""

    word: str
    box: tuple[float, float, float, float]
    score: float


class Captioner(Protocol):
    def __call__(self, image: Image.Image) -> str: ...


class Grounder(Protocol):
    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Found]: ...


class Segmenter(Protocol):
    def __call__(self, image: Image.Image, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        """bool [n H W], one mask a box."""


@dataclass(frozen=True)
class Models:
    """`caption` may be None where every picture has its own."""

    caption: Captioner | None
    ground: Grounder
    segment: Segmenter


@dataclass(frozen=True)
class Rules:
    """What counts as a subject.

    most               subjects of a picture, the surest first
    overlap            boxes that share more than this (intersection over union, 0..1) are one thing; the surer stays
    smallest, largest  share of the picture that a mask may have, 0..1
    """

    most: int = 4
    overlap: float = 0.5
    smallest: float = 0.01
    largest: float = 0.9

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}, expected at least 1 subject of a picture")


class Rejected(Exception):
    """A picture that is left out. `reason` is one of few, to be counted; the text may say more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


# ---------------------------------------------------------------- one picture: pure functions over the three models

def annotate(image: Image.Image, caption: str | None, models: Models, classes: Sequence[str], rules: Rules) -> dict[str, Any]:
    """Picture -> {"caption", "segments"} as `records` reads it. Raises Rejected."""
    caption = " ".join((models.caption(image) if caption is None else caption).split())
    spans = find_words(caption, classes)
    if not spans:
        raise Rejected("no class noun that stands once in the caption", caption)
    found = choose(models.ground(image, list(spans)), spans, image.size, rules)
    if not found:
        raise Rejected("no noun with one box of its own", f"{', '.join(spans)} in {caption!r}")
    masks = np.asarray(models.segment(image, [f.box for f in found]), dtype=bool)
    segments = [_segment(f, spans[f.word], mask, caption) for f, mask in zip(found, masks) if fits(mask, rules)]
    if not segments:
        raise Rejected("no mask of a fitting size", ", ".join(f"{f.word} {m.mean():.1%}" for f, m in zip(found, masks)))
    segments.sort(key=lambda s: s["start"])
    return {"caption": caption, "segments": [{"id": i, **s} for i, s in enumerate(segments, 1)]}


def find_words(caption: str, classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Class nouns that stand exactly once in the caption, as whole words -> their spans. Longer nouns come first, so a hot dog is no
    dog; a noun that stands twice is left out, since nothing tells which is which."""
    taken, spans = [False] * len(caption), {}
    for word in sorted({c.lower() for c in classes}, key=lambda c: (-len(c), c)):
        hits = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE)]
        hits = [(start, end) for start, end in hits if not any(taken[start:end])]
        for start, end in hits:
            taken[start:end] = [True] * (end - start)
        if len(hits) == 1:
            spans[word] = hits[0]
    return dict(sorted(spans.items(), key=lambda item: item[1]))


def choose(found: Sequence[Found], wanted: Mapping[str, Any], size: tuple[int, int], rules: Rules) -> list[Found]:
    """Detections of wanted words that are the only one of their word, after overlapping boxes were merged; boxes in whole pixels
    within a picture of `size` (width, height)."""
    clipped = [Found(f.word, _clip(f.box, size), f.score) for f in found if f.word in wanted]
    clipped = [f for f in clipped if f.box[0] < f.box[2] and f.box[1] < f.box[3]]
    if not clipped:
        return []
    kept = nms(torch.tensor([f.box for f in clipped]).float(), torch.tensor([f.score for f in clipped]).float(), rules.overlap).tolist()
    count = Counter(clipped[i].word for i in kept)
    return [clipped[i] for i in kept if count[clipped[i].word] == 1][: rules.most]


def _clip(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    x0, y0, x1, y1 = box
    return max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1))


def fits(mask: np.ndarray, rules: Rules) -> bool:
    """Whether a mask, bool [H W], is neither a speck nor the whole picture."""
    return bool(mask.any()) and rules.smallest <= mask.mean() <= rules.largest


def _segment(found: Found, span: tuple[int, int], mask: np.ndarray, caption: str) -> dict[str, Any]:
    return {"word": caption[slice(*span)], "start": span[0], "end": span[1], "box": list(found.box), "score": round(found.score, 4),
            "mask": encode_rle(mask)}


def preview(image: Image.Image, annotation: Mapping[str, Any], masks: Sequence[np.ndarray]) -> Image.Image:
    """The picture with masks tinted, boxes and words drawn, and the caption below."""
    colours = ((230, 60, 60), (60, 120, 240), (60, 190, 90), (240, 170, 40))
    pixels = np.array(image, dtype=np.float32)
    for i, mask in enumerate(masks):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(colours[i % len(colours)])
    out = Image.new("RGB", (image.width, image.height + 16), "white")
    out.paste(Image.fromarray(pixels.astype(np.uint8)))
    draw = ImageDraw.Draw(out)
    for i, segment in enumerate(annotation["segments"]):
        x0, y0, x1, y1 = segment["box"]
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colours[i % len(colours)], width=2)
        draw.text((x0 + 3, y0 + 2), segment["word"], fill="white", stroke_width=1, stroke_fill="black")
    draw.text((2, image.height + 2), annotation["caption"].encode("latin-1", "replace").decode("latin-1"), fill="black")
    return out


# ---------------------------------------------------------------- a folder

class AnnotationFile:
    """OUT.jsonl and the rejects beside it, a line at a time, each flushed before the next picture begins. `done`: the pictures of both."""

    def __init__(self, out: Path) -> None:
        self.out, self.rejects = out, out.with_name(f"{out.stem}_rejected.jsonl")
        self.previews = out.with_name(f"{out.stem}_previews")
        out.parent.mkdir(parents=True, exist_ok=True)
        annotated, rejected = repaired_images(self.out), repaired_images(self.rejects)
        self.done, self.annotated = {*annotated, *rejected}, len(annotated)

    def add(self, facts: Mapping[str, Any]) -> None:
        _append(self.out, facts)
        self.annotated += 1

    def reject(self, image: str, error: Rejected) -> None:
        log.info("%s is left out: %s", image, error)
        _append(self.rejects, {"image": image, "reason": error.reason, "detail": str(error)})

    def preview(self, image: Image.Image) -> None:
        self.previews.mkdir(exist_ok=True)
        image.save(self.previews / f"{self.annotated:08d}.jpg")


def repaired_images(path: Path) -> list[str]:
    """The "image" of every line. A last line that was cut short is taken off the file, so that the next one starts on its own."""
    if not path.exists():
        return []
    images, whole, line = [], 0, b"\n"
    with path.open("r+b") as file:
        for line in file:
            if (image := _image_of(line)) is not None:
                images.append(image)
            elif not line.endswith(b"\n"):
                break
            else:
                log.warning("%s: %r is not an annotation; its picture is done again", path.name, line[:60])
            whole += len(line)
        if not line.endswith(b"\n") and file.tell() == whole:
            file.write(b"\n")
        elif not line.endswith(b"\n"):
            log.warning("%s ended within a line, which is taken off: %r; its picture is done again", path.name, line[:60])
            file.truncate(whole)
    return images


def _image_of(line: bytes) -> str | None:
    try:
        return json.loads(line)["image"]
    except (ValueError, KeyError, TypeError):
        return None


def _append(path: Path, facts: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(facts, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass
class Progress:
    """Counts of this start of the command. `write` gets a line of text now and then: rate, rejects, time left."""

    total: int
    write: Callable[[str], Any]
    every: float = 5.0
    done: int = 0
    reasons: Counter = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def step(self, reason: str | None = None) -> None:
        self.done += 1
        if reason:
            self.reasons[reason] += 1
        now = time.monotonic()
        if now - self.told >= self.every or self.done == self.total:
            self.told, rate = now, self.done / max(now - self.started, 1e-6)
            left = (self.total - self.done) / rate / 60
            self.write(f"{self.done}/{self.total} · {rate:.2f} pictures/s · {sum(self.reasons.values())} rejected · {left:.0f} min left\n")


def find_pictures(folder: Path, out: AnnotationFile) -> dict[str, Path]:
    """Pictures below the folder by their path relative to OUT, in order; previews and what OUT has already are left out."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURES and p.is_file() and out.previews not in p.parents]
    if not paths:
        raise ValueError(f"{folder} holds no pictures; expected files ending in {', '.join(PICTURES)}")
    named = {Path(os.path.relpath(p, out.out.parent)).as_posix(): p for p in paths}
    return {name: path for name, path in named.items() if name not in out.done}


def annotate_folder(pictures: Mapping[str, Path], out: AnnotationFile, models: Models, classes: Sequence[str], rules: Rules,
                    progress: Progress, previews: int = 50) -> None:
    """Annotate pictures {name for the file: path} into `out`, with a preview of the first and then every `previews`-th; 0 = none.
    ValueError when HALTING pictures in a row make a model fail; they are not recorded as rejected."""
    failed: list[tuple[str, Rejected]] = []
    for name, path in pictures.items():
        try:
            image = read_picture(Stored(str(path)))
            facts = annotate(image, own_caption(path), models, classes, rules)
        except (BrokenRecord, UnicodeDecodeError) as error:
            rejected = Rejected("unreadable", str(error))
        except Rejected as error:
            rejected = error
        except (RuntimeError, ValueError) as error:     # one odd picture must not end a night's work
            failed.append((name, Rejected("a model failed", f"{type(error).__name__}: {error}")))
            if len(failed) == HALTING:
                raise ValueError(f"the models failed on {HALTING} pictures in a row, the last: {name}: {error}") from error
            progress.step("a model failed")
            continue
        else:
            rejected = None
            out.add({"image": name, "width": image.width, "height": image.height, **facts})
            if previews and out.annotated % previews == 1 % previews:
                out.preview(preview(image, facts, [decode_rle(s["mask"]) for s in facts["segments"]]))
        failed = _record_failures(failed, out)
        if rejected:
            out.reject(name, rejected)
        progress.step(rejected and rejected.reason)
    _record_failures(failed, out)


def _record_failures(failed: list[tuple[str, Rejected]], out: AnnotationFile) -> list:
    for name, error in failed:
        out.reject(name, error)
    return []


def own_caption(picture: Path) -> str | None:
    """The text of NAME.txt beside NAME.jpg, or None."""
    text = picture.with_suffix(".txt")
    return text.read_text(encoding="utf-8") if text.is_file() else None


# ---------------------------------------------------------------- the real models, each from a local folder

# model_type in config.json -> names in transformers of the processor and the model
CAPTIONERS = {"blip": ("BlipProcessor", "BlipForConditionalGeneration"), "blip-2": ("Blip2Processor", "Blip2ForConditionalGeneration")}
GROUNDERS = {"grounding-dino": ("GroundingDinoProcessor", "GroundingDinoForObjectDetection")}
SEGMENTERS = {"sam": ("SamProcessor", "SamModel"), "sam2": ("Sam2Processor", "Sam2Model"), "sam2_video": ("Sam2Processor", "Sam2Model")}


class LocalModel:
    """A processor and a model of one of the `known` types from a local folder. ValueError when the folder holds no such model."""

    def __init__(self, folder: Path, known: Mapping[str, tuple[str, str]], device: torch.device,
                 dtype: torch.dtype = torch.float32) -> None:
        import transformers  # takes seconds, which only those wait who have models to load

        processor, model = (getattr(transformers, name, None) for name in known[_model_type(folder, known)])
        if processor is None or model is None:
            raise ValueError(f"transformers {transformers.__version__} is too old for the model in {folder}; update it")
        try:
            self.processor = processor.from_pretrained(folder, local_files_only=True)
            self.model = model.from_pretrained(folder, local_files_only=True).to(device, dtype).eval()
        except (OSError, KeyError) as error:
            raise ValueError(f"the model in {folder} cannot be loaded: {error}") from error
        self.device, self.dtype = device, dtype

    def prepared(self, **inputs: Any) -> Mapping[str, Tensor]:
        return self.processor(return_tensors="pt", **inputs).to(self.device, self.dtype)


def _model_type(folder: Path, known: Mapping[str, Any]) -> str:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} is no folder of a transformers model: its config.json cannot be read ({error})") from error
    if found not in known:
        raise ValueError(f"the model in {folder} is a {found!r}, expected one of {', '.join(known)}")
    return found


class BlipCaptioner(LocalModel):
    """BLIP or BLIP-2; in half precision on a GPU, as in the published demo."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder, CAPTIONERS, device, torch.float16 if device.type == "cuda" else torch.float32)

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        tokens = self.model.generate(**self.prepared(images=image), max_new_tokens=40)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


class DinoGrounder(LocalModel):
    """Grounding DINO: each query with a score above `threshold` is a detection of the word whose tokens it matches best."""

    def __init__(self, folder: Path, device: torch.device, threshold: float = 0.3) -> None:
        super().__init__(folder, GROUNDERS, device)
        self.threshold = threshold

    @torch.inference_mode()
    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Found]:
        prompt = " ".join(f"{word.lower()}." for word in words)
        out = self.model(**self.prepared(images=image, text=prompt))
        scores, best = word_scores(out.logits[0].float().sigmoid().cpu(), self._tokens(prompt, words)).max(1)
        boxes = box_convert(out.pred_boxes[0].float().cpu(), "cxcywh", "xyxy") * torch.tensor([*image.size] * 2)
        return [Found(words[best[q]], tuple(boxes[q].tolist()), float(scores[q])) for q in (scores > self.threshold).nonzero()[:, 0]]

    def _tokens(self, prompt: str, words: Sequence[str]) -> list[list[int]]:
        """Of each word, the positions of its tokens in the prompt."""
        places = self.processor.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        ends = np.cumsum([len(word) + 2 for word in words]) - 2
        return [[t for t, (a, b) in enumerate(places) if end - len(word) <= a < b <= end] for word, end in zip(words, ends)]


def word_scores(probabilities: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Match of queries and tokens [Q T] in 0..1 -> of queries and words [Q words]: the mean over a word's tokens."""
    return torch.stack([probabilities[:, list(t)].mean(1) if t else probabilities.new_zeros(len(probabilities)) for t in tokens], 1)


class SamSegmenter(LocalModel):
    """SAM or SAM 2, one mask for each box."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder, SEGMENTERS, device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, boxes: Sequence[Sequence[float]]) -> np.ndarray:
        inputs = self.prepared(images=image, input_boxes=[[list(map(float, box)) for box in boxes]])
        out = self.model(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
        sizes = [inputs[k].cpu() for k in ("original_sizes", "reshaped_input_sizes") if k in inputs]     # the second: SAM only
        masks = self.processor.post_process_masks(out.pred_masks.cpu(), *sizes)[0]                        # n 1 H W
        return masks[:, 0].numpy()


# ---------------------------------------------------------------- the command

def load_models(captioner: Path | None, grounder: Path, segmenter: Path, device: torch.device, threshold: float) -> Models:
    """The three from their folders. ValueError names the folder that does not fit."""
    caption = BlipCaptioner(captioner, device) if captioner else None
    return Models(caption, DinoGrounder(grounder, device, threshold), SamSegmenter(segmenter, device))


def read_classes(path: Path | None) -> tuple[str, ...]:
    """Class nouns of a file, between commas or one a line; without a file the default ones. ValueError for an empty file."""
    text = CLASSES if path is None else path.read_text(encoding="utf-8")
    words = tuple(word.strip() for word in re.split(r"[,\n]", text) if word.strip())
    if not words:
        raise ValueError(f"{path} holds no class nouns; expected one a line")
    return words


def run(args: argparse.Namespace, write: Callable[[str], Any]) -> None:
    """The command with its arguments read. ValueError for what a person can put right."""
    if args.out.suffix != ".jsonl":
        raise ValueError(f"OUT is {args.out}; its name must end in .jsonl")
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} is not a folder; expected one with pictures")
    out, classes = AnnotationFile(args.out), read_classes(args.classes)
    pictures = find_pictures(args.folder, out)
    write(f"{len(pictures)} pictures to do, {len(out.done)} are done\n")
    if not pictures:
        return
    bare = [name for name, path in pictures.items() if not path.with_suffix(".txt").is_file()]
    if bare and args.captioner is None:
        raise ValueError(f"{len(bare)} pictures have no caption in a .txt beside them, the first is {bare[0]}: give --captioner DIR")
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models = load_models(args.captioner, args.grounder, args.segmenter, device, args.threshold)
    progress = Progress(len(pictures), write)
    try:
        annotate_folder(pictures, out, models, classes, Rules(most=args.most), progress, args.previews)
    finally:
        for reason, count in progress.reasons.most_common():
            write(f"rejected {count}: {reason}\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.training.annotate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="pictures, also in folders below")
    parser.add_argument("out", type=Path, help="name ending in .jsonl; is gone on with if it is there")
    parser.add_argument("--captioner", type=Path, help="folder of a BLIP or BLIP-2 model; not needed where all pictures have a .txt")
    parser.add_argument("--grounder", type=Path, required=True, help="folder of a Grounding DINO model")
    parser.add_argument("--segmenter", type=Path, required=True, help="folder of a SAM or SAM 2 model")
    parser.add_argument("--classes", type=Path, help="class nouns, one a line; the default is a list of common ones")
    parser.add_argument("--threshold", type=float, default=0.3, help="smallest score of a detection, 0..1 (default: 0.3)")
    parser.add_argument("--most", type=int, default=4, help="most subjects of a picture, from 1 (default: 4)")
    parser.add_argument("--previews", type=int, default=50, help="pictures between two previews; 0 = none (default: 50)")
    parser.add_argument("--device", help="of torch, as cuda:1; the default is the first GPU, else the CPU")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run(args, sys.stderr.write)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; start again with the same OUT to go on\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
