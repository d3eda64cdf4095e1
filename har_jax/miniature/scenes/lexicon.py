"""The words that annotators have for what they see, each with how usual it is among people.

The first of each table is the commonest. Placeholders in phrases are filled by `annotators`.
"""

from __future__ import annotations

NOUNS = {
    "circle": {"ball": 0.6, "circle": 0.25, "disc": 0.1, "sphere": 0.05},
    "square": {"box": 0.5, "square": 0.3, "block": 0.15, "cube": 0.05},
    "triangle": {"triangle": 0.65, "cone": 0.2, "pyramid": 0.15},
    "star": {"star": 1.0},
    "ring": {"ring": 0.65, "hoop": 0.2, "donut": 0.15},
    "heart": {"heart": 0.9, "love heart": 0.1},
    "cross": {"cross": 0.7, "plus sign": 0.3},
    "crescent": {"moon": 0.65, "crescent": 0.25, "half moon": 0.1},
}

COLOURS = {
    "red": {"red": 0.9, "bright red": 0.06, "crimson": 0.04},
    "orange": {"orange": 1.0},
    "yellow": {"yellow": 0.88, "bright yellow": 0.06, "golden": 0.06},
    "green": {"green": 0.92, "dark green": 0.08},
    "blue": {"blue": 0.9, "dark blue": 0.1},
    "purple": {"purple": 0.88, "violet": 0.12},
    "pink": {"pink": 0.92, "light pink": 0.08},
    "white": {"white": 1.0},
}

SIZES = {
    "large": {"large": 0.45, "big": 0.4, "huge": 0.1, "giant": 0.05},
    "small": {"small": 0.55, "little": 0.25, "tiny": 0.2},
}

# Before the colour ("a striped red ball") or after the noun ("a red ball with stripes").
TEXTURES = {
    "striped": {"striped": 0.75, "stripy": 0.1, "lined": 0.15},
    "dotted": {"spotted": 0.5, "dotted": 0.35, "polka dot": 0.15},
    "checkered": {"checkered": 0.75, "checked": 0.25},
}
MARKS = {"striped": "stripes", "dotted": "dots", "checkered": "squares"}

_NEAR = {"near": 0.05, "by": 0.05, "close to": 0.05}
RELATIONS = {
    "left": {"next to": 0.45, "beside": 0.2, "to the left of": 0.2} | _NEAR,
    "right": {"next to": 0.45, "beside": 0.2, "to the right of": 0.2} | _NEAR,
    "above": {"above": 0.6, "over": 0.3, "higher than": 0.1},
    "below": {"below": 0.5, "under": 0.35, "beneath": 0.15},
    "on": {"on top of": 0.6, "on": 0.35, "atop": 0.05},
    "inside": {"inside": 0.5, "in": 0.2, "in the middle of": 0.2, "within": 0.1},
    "under": {"under": 0.6, "below": 0.2, "underneath": 0.2},
    "around": {"around": 0.8, "surrounding": 0.2},
}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
INVERSE |= {"on": "under", "inside": "around"}

# "a red ball ... with a blue box on its right"
SIDES = {
    "left": {"on its right": 0.6, "to the right": 0.4},
    "right": {"on its left": 0.6, "to the left": 0.4},
    "above": {"below it": 0.6, "under it": 0.4},
    "below": {"above it": 0.6, "over it": 0.4},
    "on": {"under it": 0.7, "underneath it": 0.3},
    "inside": {"around it": 1.0},
    "under": {"on top of it": 0.7, "on it": 0.3},
    "around": {"inside it": 0.6, "in the middle": 0.4},
}

PLACES = {
    "grass": {"in the grass": 0.5, "on the grass": 0.25, "on a lawn": 0.1, "in a meadow": 0.05}
    | {"on a green field": 0.1},
    "sea": {"in the water": 0.5, "in the sea": 0.2, "in the ocean": 0.2, "on the waves": 0.1},
    "night": {"in the night sky": 0.5, "in the dark sky": 0.2, "at night": 0.2}
    | {"under the stars": 0.1},
    "sand": {"on the sand": 0.5, "on the beach": 0.3, "in the sand": 0.1, "in the desert": 0.1},
    "snow": {"in the snow": 0.65, "on the snow": 0.2, "on a snowy field": 0.15},
    "wall": {"on a gray wall": 0.5, "against a gray wall": 0.2, "in front of a wall": 0.2}
    | {"on the wall": 0.1},
    "table": {"on a wooden table": 0.5, "on the table": 0.25, "on a wooden floor": 0.15}
    | {"on a desk": 0.1},
}

VIEWS = {
    "grass": {"a grassy field": 0.6, "a green lawn": 0.4},
    "sea": {"the blue sea": 0.5, "the open water": 0.5},
    "night": {"a starry night sky": 0.6, "a dark night": 0.4},
    "sand": {"a sandy beach": 0.7, "a desert": 0.3},
    "snow": {"a snowy field": 0.6, "white snow": 0.4},
    "wall": {"a plain gray wall": 0.7, "a blank wall": 0.3},
    "table": {"a wooden table": 0.6, "a brown table top": 0.4},
}

VERBS = {
    "grass": {"sitting": 0.5, "lying": 0.3, "resting": 0.2},
    "sea": {"floating": 0.8, "drifting": 0.1, "swimming": 0.1},
    "night": {"floating": 0.5, "hanging": 0.3, "shining": 0.2},
    "sand": {"sitting": 0.5, "lying": 0.4, "resting": 0.1},
    "snow": {"sitting": 0.5, "lying": 0.4, "resting": 0.1},
    "wall": {"hanging": 0.7, "painted": 0.2, "drawn": 0.1},
    "table": {"sitting": 0.5, "lying": 0.3, "placed": 0.1, "standing": 0.1},
}

COUNTS = {2: {"two": 0.8, "a couple of": 0.2}, 3: {"three": 1.0}, 4: {"four": 0.7, "several": 0.3}}
THINGS = {"shapes": 0.5, "objects": 0.3, "things": 0.1, "toys": 0.05, "colorful shapes": 0.05}

THERE_IS = {"there is": 0.7, "we see": 0.1, "you can see": 0.1, "i can see": 0.1}
PICTURES = {"a picture of": 0.6, "an image of": 0.2, "a drawing of": 0.1, "this is": 0.1}
