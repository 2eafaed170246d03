"""The class nouns that a caption may name a subject with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

CLASSES = """
man, woman, boy, girl, baby, child, kid, person, lady, guy, gentleman, bride, groom, player, skier,
snowboarder, surfer, skateboarder, rider, chef, clown, soldier, policeman, fireman, dog, puppy,
cat, kitten, horse, pony, cow, calf, bull, sheep, lamb, goat, pig, piglet, chicken, hen, rooster,
duck, goose, swan, bird, parrot, owl, eagle, penguin, pigeon, peacock, flamingo, elephant, bear,
polar bear, teddy bear, panda, zebra, giraffe, lion, tiger, leopard, cheetah, wolf, fox, deer,
moose, camel, monkey, gorilla, rabbit, squirrel, hamster, hedgehog, mouse, turtle, tortoise, frog,
lizard, snake, crocodile, dinosaur, dragon, fish, shark, dolphin, whale, seal, crab, lobster,
butterfly, bee, ladybug, spider, car, truck, van, bus, train, tram, motorcycle, scooter, bicycle,
bike, tractor, airplane, plane, helicopter, boat, ship, sailboat, canoe, fire hydrant, stop sign,
parking meter, bench, chair, armchair, sofa, couch, bed, table, desk, lamp, clock, vase, mirror,
piano, guitar, violin, drum, trumpet, backpack, handbag, purse, suitcase, umbrella, hat, cap,
helmet, shoe, boot, sneaker, dress, jacket, coat, shirt, tie, watch, necklace, mug, cup, teapot,
bottle, bowl, plate, pot, pan, cake, pizza, sandwich, hamburger, hot dog, donut, apple, banana,
orange, pear, pineapple, strawberry, pumpkin, carrot, book, laptop, computer, keyboard, phone,
camera, television, microwave, oven, toaster, refrigerator, sink, toilet, doll, toy, robot, statue,
ball, basketball, football, balloon, kite, skateboard, surfboard, snowboard, flower, rose,
sunflower, tree, cactus, plant, castle, church, lighthouse, windmill, barn, tent
"""

Spans = dict[str, tuple[int, int]]


def read_classes(path: Path | None) -> tuple[str, ...]:
    """Class nouns of a file, separated by commas or lines; without a file the default ones.

    ValueError for a file that is empty or no text.
    """
    try:
        text = CLASSES if path is None else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; expected class nouns, one a line") from error
    words = tuple(filter(None, map(str.strip, re.split(r"[,\n]", text))))
    if not words:
        raise ValueError(f"{path} holds no class nouns; expected one a line")
    return words


def find_nouns(caption: str, classes: Sequence[str]) -> Spans:
    """Class nouns that occur exactly once in the caption, as whole words -> their spans.

    Longer nouns are searched first, so that a hot dog is no dog. A noun that occurs twice is left
    out, since nothing tells which of them is meant.
    """
    taken, spans = [False] * len(caption), {}
    for noun in sorted({c.lower() for c in classes}, key=lambda noun: (-len(noun), noun)):
        hits = []
        for match in re.finditer(rf"(?<!\w){re.escape(noun)}(?!\w)", caption, re.IGNORECASE):
            start, end = match.span()
            if not any(taken[start:end]):
                hits.append((start, end))
        for start, end in hits:
            taken[start:end] = [True] * (end - start)
        if len(hits) == 1:
            spans[noun] = hits[0]
    return dict(sorted(spans.items(), key=lambda item: item[1]))
