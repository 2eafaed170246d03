"""The small world's drawings, as data: twelve classes, five patterns, four kinds of eyes, five
accessories.

Letters   . nothing   o outline (INK)   a body, patterned   b second colour   e eye
A sprite is 10 wide and 11 high, feet on the last line; accessories reach up to 3 rows above it.
"""
from __future__ import annotations

WIDTH, HEIGHT, HEADROOM = 10, 11, 3
INK = (0.06, 0.05, 0.10)

SPRITES: dict[str, str] = {
    "ghost": """
...oooo...
..oaaaao..
.oaaaaaao.
.oaeaaeao.
.oaaaaaao.
.oabbbbao.
.oaaaaaao.
.oaaaaaao.
.oaaaaaao.
.oaoaaoao.
.o..oo..o.""",
    "robot": """
.oooooooo.
.oaaaaaao.
.oaeaaeao.
.oaaaaaao.
.oooooooo.
...obbo...
bboaaaaobb
b.oaaaao.b
b.oaaaao.b
..oo..oo..
.bbb..bbb.""",
    "cat": """
.oo....oo.
.oao..oao.
.oaaooaao.
.oaaaaaao.
.oaeaaeao.
.oaabbaao.
..oooooo.o
.oaaaaaaoo
.oabbbbaao
.oabbbbao.
..oooooo..""",
    "fish": """
..........
...bbb....
...ooooo..
bboaaaaao.
bboaaaeaao
.baaaaaaao
.baaabbaao
bboaaaaaao
bboaaaaao.
...ooooo..
....bb....""",
    "tree": """
....oo....
...oaao...
..oaaaao..
.oaaaaaao.
.oaeaaeao.
oaaaaaaaao
oaaaaaaaao
.oooooooo.
...obbo...
...obbo...
..obbbbo..""",
    "slime": """
..........
..........
..........
...oooo...
..oabbao..
.oaaaaaao.
.oaeaaeao.
oaaaaaaaao
oaaaaaaaao
oabbbbbbao
.oooooooo.""",
    "mushroom": """
..........
..oooooo..
.oaaaaaao.
oaaaaaaaao
oaaaaaaaao
oaaaaaaaao
.oooooooo.
..obebeo..
..obbbbo..
..obbbbo..
...oooo...""",
    "star": """
....oo....
....oo....
...oaao...
oooaaaaooo
oaaeaaeaao
.oaaaaaao.
..oabbao..
..oaaaao..
.oaaooaao.
.oao..oao.
.oo....oo.""",
    "bird": """
...oooo...
..oaaaao..
..oaeaaobb
..oaaaaob.
.oooaaaao.
oabbbaaao.
oabbbbaao.
oaabbaaao.
.oaaaaao..
..ooooo...
...b.b....""",
    "crab": """
bb......bb
bob....bob
bbb....bbb
.bb....bb.
..oooooo..
.oaaaaaao.
oaaeaaeaao
oaaaaaaaao
oaabbbbaao
.oooooooo.
.b.b..b.b.""",
    "heart": """
..........
..oo..oo..
.oaaooaao.
oaaaaaaaao
oaaeaaeaao
oaaaaaaaao
.oaabbaao.
.oaaaaaao.
..oaaaao..
...oaao...
....oo....""",
    "rocket": """
....oo....
...obbo...
..obbbbo..
..oaaaao..
..oaeeao..
..oaaaao..
..oaaaao..
.boaaaaob.
bboaaaaobb
bb.oooo.bb
b........b""",
}

PATTERNS = ("plain", "stripes", "bars", "dots", "checker")
EYES = ("dark", "white", "red", "tall")
ACCESSORIES = ("none", "hat", "crown", "bow", "antenna")

# What captions can say of an individual, a word each. Hues are named in twelve steps from red on.
HUES = ("red", "orange", "yellow", "lime", "green", "mint", "teal", "azure", "blue", "violet",
        "magenta", "pink")
WORDS: dict[str, tuple[str, ...]] = {
    "eyes": ("calm", "bright", "fierce", "surprised"),
    "first": HUES,
    "second": HUES,
    "pattern": ("plain", "striped", "barred", "dotted", "checked"),
    "accessory": ("bare", "hat", "crown", "bow", "antenna"),
}

# rows bottom up from the first row above the head; letters are colours of ACCESSORY_COLOURS
ACCESSORY_ROWS: dict[str, tuple[str, ...]] = {
    "none": (),
    "hat": ("kkkkkk", ".kkkk.", ".kkkk."),
    "crown": ("yyyyyy", "y.yy.y"),
    "bow": ("pp..pp", "ppppp.", "pp..pp"),
    "antenna": ("..kk..", "..kk..", ".cccc."),
}
ACCESSORY_COLOURS = {
    "k": (0.30, 0.30, 0.40), "y": (1.0, 0.84, 0.10), "p": (1.0, 0.35, 0.70),
    "c": (0.20, 0.95, 0.95),
}
EYE_COLOURS = {
    "dark": (0.02, 0.02, 0.05), "white": (1.0, 1.0, 1.0), "red": (0.95, 0.05, 0.05),
    "tall": (0.02, 0.02, 0.05),
}

# column where an accessory's six columns begin, and the row of the head's top
HEADS: dict[str, tuple[int, int]] = {
    "ghost": (2, 0), "robot": (2, 0), "cat": (2, 2), "fish": (3, 2), "tree": (2, 0), "slime":
    (2, 3), "mushroom": (2, 1),
    "star": (2, 0), "bird": (2, 0), "crab": (2, 4), "heart": (2, 1), "rocket": (2, 0),
}

PLACES: dict[str, str] = {
    "beach": "on the beach", "forest": "in the forest", "night": "at night", "snow": "in the snow",
    "desert": "in the desert", "city": "in the city", "meadow": "on a meadow", "cave": "in a cave",
}

CLASSES = tuple(SPRITES)
HELD_OUT_PAIRS = frozenset(frozenset(p) for p in (
    ("ghost", "robot"), ("cat", "fish"), ("tree", "slime"), ("mushroom", "star"), ("bird",
    "crab"), ("heart", "rocket"),
))
