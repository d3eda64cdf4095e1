"""Labels of patches: by hand, and against the picture that was drawn and moved."""

import jax
import numpy as np
from flax import nnx

from har_jax.interchange.families.clip import save_clip
from har_jax.miniature import patches, pretrain
from har_jax.miniature.patches import COLOURS, SHAPES, Pictures, boxes, labels
from har_jax.miniature.pretrain import Schedule, Towers, patch_loss, shifted, train_pairs
from har_jax.miniature.scenes.dice import Dice
from har_jax.miniature.scenes.draw import RGB, render
from har_jax.miniature.scenes.world import Scene, Thing, sample_scene
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from har_jax.models.functional import split

NONE = tuple(n - 1 for n in patches.CLASSES)


def test_the_smallest_thing_on_a_patch_is_named():
    ring = Thing("ring", "red", "plain", "large", 32, 32, 46)
    ball = Thing("circle", "blue", "plain", "small", 30, 30, 14)
    grid = labels(boxes([Scene("wall", "inside", (ball, ring))]), np.zeros((1, 2), int), 64, 16)
    named = {(s, c) for s, c in grid[0].tolist()}
    outer, inner = ((SHAPES.index(t.shape), COLOURS.index(t.colour)) for t in (ring, ball))
    assert named == {outer, inner}  # the ring's box reaches into all sixteen patches
    at = grid[0].reshape(4, 4, 2)
    assert tuple(at[1, 1]) == inner and tuple(at[0, 0]) == outer == tuple(at[3, 3])


def test_patches_of_the_ground_are_none_and_moving_takes_the_labels_along():
    star = Thing("star", "pink", "plain", "small", 8, 24, 16)  # patch (1, 0), all of it
    found = boxes([Scene("sea", "left", (star,))] * 3)
    grid = labels(found, np.array([[0, 0], [16, 32], [0, -14]]), 64, 16).reshape(3, 4, 4, 2)
    label = [SHAPES.index("star"), COLOURS.index("pink")]
    for row, place in zip(grid[:2], ((1, 0), (2, 2)), strict=True):
        assert row[place].tolist() == label
        row[place] = NONE
        assert (row == NONE).all()
    assert (grid[2, 1, 0] == label).all() == (patches.COVERED * 256 < 2 * 16)


def test_labels_name_the_colour_that_is_seen_after_the_move():
    rng = np.random.default_rng(0)
    right = seen = 0
    for i in range(60):
        dice = Dice("patches", i)
        scene = sample_scene(dice, held_out=False)
        moved = rng.integers(-6, 7, (1, 2))
        picture = shifted(render(scene, dice)[None], moved)[0]
        grid = labels(boxes([scene]), moved, 64, 8)[0].reshape(8, 8, 2)
        for thing in scene.things:
            y, x = np.array([thing.y, thing.x]) + moved[0]
            if thing.texture != "plain" or thing.shape in ("ring", "crescent"):
                continue
            if not (0 <= y < 64 and 0 <= x < 64):
                continue
            if np.abs(picture[y, x].astype(int) - RGB[thing.colour]).max() <= 10:
                seen += 1
                right += grid[y // 8, x // 8].tolist() == [
                    SHAPES.index(thing.shape),
                    COLOURS.index(thing.colour),
                ]
    assert seen > 40 and right > 0.9 * seen


def test_the_patches_learn_and_the_head_is_thrown_away(monkeypatch):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = CLIPConfig(
        vision=VisionConfig(**tower, image_size=64, patch_size=16),
        text=TextConfig(**tower, vocab_size=20, bos_token_id=1, eos_token_id=2 + 1),
        projection_dim=8,
    )
    dice = Dice("learns")
    drawn = [sample_scene(dice, held_out=False) for _ in range(24)]
    pixels = np.stack([render(scene, dice) for scene in drawn])
    texts = [np.array([[1, 4 + i % 16, 3]]) for i in range(24)]
    start = CLIP(config, rngs=nnx.Rngs(0))
    names = set(split(start)[1])
    kept = {}
    fit = pretrain.fit

    def look(*args, **kw):
        kept["params"] = fit(*args, **kw)
        return dict(kept["params"])

    monkeypatch.setattr(pretrain, "fit", look)
    clip = train_pairs(
        Towers(start, lambda m, x: m.vision.projection(x), lambda texts: texts[0], 3, save_clip),
        Pictures(pixels, [["a"]] * 24, boxes(drawn)),
        texts,
        Schedule(2, 24, lr=0.01),
        Schedule(40, 24, lr=0.01),
        normalise=lambda x: (x / 255 - 0.5).astype(np.float32),
        seed=0,
        label="",
        shift=0,
    )
    assert set(split(clip)[1]) == names
    x = (pixels / 255 - 0.5).astype(np.float32)
    told = labels(boxes(drawn), np.zeros((24, 2), int), 64, 16)
    head = kept["params"][pretrain.HEAD]
    after = jax.jit(lambda x: patch_loss(clip.vision.hidden(x, -2)[:, 1:], head, told))(x)
    assert after < 0.8 * (2 * np.log(9))  # what a head of zeros loses
