"""Random API graphs on the small world that all run: subjects, regions, mixtures, watched maps."""

from __future__ import annotations

import json
import random

from support.graphs import node

CLASSES = ("ghost", "robot", "cat", "fish", "tree", "slime", "mushroom", "star")
NAMES = ("Ann", "Bob", "Eve")
ADDED = ("", "", " at night", " on the beach", ", calm")
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "heun", "lcm", "uni_pc", "ddim")


def random_prompt(number: int, seed: int = 0) -> dict:
    """The prompt of that number: one to three subjects or none, regions, mixtures, watched maps,
    samplers, sizes. Ends in a saved latent named after the number."""
    choose = random.Random(f"{seed} {number}")
    count = choose.choice((0, 1, 1, 2, 2, 2, 3))
    mixed = count > 1 and choose.random() < 0.15
    prompt = {"world": node("MMDiffSmallWorldLoader")}
    kinds = [choose.choice(CLASSES) for _ in range(count)]
    last = None
    for i, kind in enumerate(kinds):
        prompt |= _subject(choose, i, kind, last)
        last = [f"subject{i}", 0]
    if mixed:
        method = choose.choice(("average", "spherical", "together"))
        mix = node("MMDiffMixSubjects", subjects=last, weights="", method=method, name="Ann")
        prompt["mix"] = mix
        kinds, count, last = kinds[:1], 1, ["mix", 0]
    if count and choose.random() < 0.5:
        name, added = _changed(choose, count, last)
        prompt |= added
        last = [name, 0]
    prompt["text"] = _text(choose, kinds, last)
    prompt |= _sampled(choose, number)
    return prompt


def _subject(choose: random.Random, i: int, kind: str, last: list | None) -> dict:
    sprite = node(
        "MMDiffSmallWorldSprite",
        kind=kind,
        first_colour=choose.randrange(4) / 4,
        second_colour=choose.randrange(3) / 3,
        pattern=choose.choice(("plain", "dots")),
        eyes="dark",
        accessory=choose.choice(("none", "hat")),
        references=choose.choice((1, 1, 3)),
        seed=choose.randrange(2),
    )
    encoder = node(
        "MMDiffSubjectEncoder",
        mmdiff=["world", 4],
        clip_vision=["world", 3],
        image=[f"sprite{i}", 0],
        name=NAMES[i],
        weight=choose.choice((0.5, 1.0, 1.2)),
        face=0,
        **({} if last is None else {"subjects": last}),
    )
    return {f"sprite{i}": sprite, f"subject{i}": encoder}


def _changed(choose: random.Random, count: int, last: list) -> tuple[str, dict]:
    """A node that gives regions, weights or a mixture to the chain."""
    kind = choose.choice(("boxes", "found" if count > 1 else "boxes", "weights", "saved"))
    if kind == "boxes":
        boxes = [
            {"subject": i + 1, "x": i / count, "y": 0.1, "width": 1 / count, "height": 0.8}
            for i in range(count)
        ]
        made = node(
            "MMDiffConstraintMasks",
            subjects=last,
            feather=choose.choice((0.0, 8.0)),
            boxes=json.dumps(boxes),
            strength=choose.choice((0.6, 1.0)),
            exclusive=choose.random() < 0.5,
            width=128,
            height=128,
            hold_nouns=choose.random() < 0.5,
            bound_self_attention=choose.random() < 0.5,
        )
    elif kind == "found":
        settle, update = choose.choice((0.2, 0.5)), choose.random() < 0.5
        held = {"hold_tokens": True, "hold_nouns": choose.random() < 0.5}
        held |= {"bound_self_attention": choose.random() < 0.5}
        found = {"settle": settle, "update": update, "sharpness": 4.0, "image_share": 0.5}
        made = node("MMDiffFindRegions", subjects=last, **found, **held)
    elif kind == "weights":
        made = node(
            "MMDiffSubjectWeights", subjects=last, name="Ann", weight=0.7, per_picture="1, 0.5"
        )
    else:
        made = node("MMDiffSaveSubject", subjects=last, prefix="soak", overwrite=True)
    return "changed", {"changed": made}


def _text(choose: random.Random, kinds: list[str], last: list | None) -> dict:
    text = " and ".join(f"a {kind}<|subj|>" for kind in kinds) or "a cat"
    return node(
        "MMDiffTextEncode",
        clip=["world", 1],
        mmdiff=["world", 4],
        text=text + choose.choice(ADDED),
        negative=choose.choice(("", "", "a robot")),
        start=choose.choice((0.0, 0.0, 0.3)),
        behaviour="from checkpoint",
        **({} if last is None else {"subjects": last}),
    )


def _sampled(choose: random.Random, number: int) -> dict:
    watched = choose.random() < 0.3
    size = {"width": choose.choice((96, 128, 160)), "height": choose.choice((96, 128))}
    return {
        "apply": node(
            "MMDiffApplyAttention",
            model=["world", 0],
            mmdiff=["world", 4],
            fuse_scale=choose.choice((0.0, 0.6, 1.0)),
            start_percent=choose.choice((0.0, 0.2)),
            end_percent=choose.choice((0.8, 1.0)),
            lora_strength=1.0,
        ),
        "watch": node(
            "MMDiffWatchAttention",
            model=["apply", 0],
            start_percent=0.0,
            end_percent=1.0,
            strip=2,
            layers="",
            live=choose.random() < 0.5,
        ),
        "latent": node("EmptyLatentImage", **size, batch_size=choose.choice((1, 1, 2))),
        "sampled": node(
            "KSampler",
            model=["watch" if watched else "apply", 0],
            positive=["text", 0],
            negative=["text", 1],
            latent_image=["latent", 0],
            seed=number,
            steps=choose.randint(2, 6),
            cfg=choose.choice((1.0, 3.0)),
            sampler_name=choose.choice(SAMPLERS),
            scheduler=choose.choice(("sgm_uniform", "normal", "karras")),
            denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sampled", 0], filename_prefix=f"soak_{number:05}"),
    }
