"""The miniature foundation models: HF directories that load here and in transformers."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from har_jax.data import builder, dataset
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import load_clip
from har_jax.interchange.families.gpt2 import load_gpt2
from har_jax.interchange.families.mistral import load_mistral
from har_jax.miniature import models as foundation
from har_jax.miniature import patches, scenes
from har_jax.miniature.material import Material
from har_jax.miniature.models import build
from har_jax.miniature.pretrain import Schedule, muon_dimensions, token_loss
from har_jax.miniature.recipes import CLIP_B, CLIP_L, GPT2, MISTRAL, Recipe
from har_jax.miniature.scenes import draw, world
from har_jax.miniature.scenes.dice import Dice
from har_jax.miniature.truth import shape_words
from har_jax.models.decoders import Mistral
from har_jax.text.tokenizer import load_clip_tokenizer, load_tokenizer
from tests.helpers import initialise

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "white": (250,) * 3}


def small(recipe, schedule: Schedule):
    if dataclasses.is_dataclass(recipe) and hasattr(recipe, "vision"):
        tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                 "num_attention_heads": 2}  # fmt: skip
        vision, text = {**recipe.vision, **tower}, {**recipe.text, **tower}
        looking = Schedule(2, 8)
        return dataclasses.replace(
            recipe, vision=vision, text=text, schedule=schedule, looking=looking
        )
    if "n_embd" in recipe.model:
        model = {**recipe.model, "n_embd": 16, "n_inner": 24, "n_layer": 1, "n_head": 2}
        return dataclasses.replace(recipe, model=model, schedule=schedule)
    model = {**recipe.model, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
    return dataclasses.replace(recipe, model=model, schedule=schedule)


SMALL = Recipe(
    clip_l=small(CLIP_L, Schedule(60, 24)),
    clip_b=small(CLIP_B, Schedule(3, 24)),
    mistral=dataclasses.replace(
        small(MISTRAL, Schedule(100, 16, lr=0.01)), max_epochs=100, vocab_size=300
    ),
    gpt2=dataclasses.replace(
        small(GPT2, Schedule(100, 16, lr=0.01)), max_epochs=100, vocab_size=300
    ),
    scenes=10,
    clip_vocab_size=600,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """24 images of one colour each (4 colours), of another size than the CLIPs'."""
    examples = []
    for i in range(24):
        name = list(COLOURS)[i % 4]
        buffer = io.BytesIO()
        Image.new("RGB", (80 + i, 70), COLOURS[name]).save(buffer, "PNG")
        captions = [f"a {name} picture", f"all of it is {name}"][: 1 + i % 2]
        examples.append(("train", dataset.Example(i, f"{i}.png", buffer.getvalue(), captions)))
    directory = tmp_path_factory.mktemp("data") / "colours"
    builder.write(
        directory, examples, name="colours", splits=["train"], description="", settings={}
    )
    return directory


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "mini"
    lines = []
    figures = build(data, out, recipe=SMALL, say=lines.append)
    assert [line.split(":")[0] for line in lines] == list(foundation.NAMES)
    return out, figures


def test_training_teaches(built):
    _, figures = built
    assert figures["clip-l"]["right"] > figures["clip-l"]["shuffled"] + 0.3
    for name in ("mistral", "gpt2"):
        assert figures[name]["nats_per_token"] < 1.5  # a uniform guess: ln 300 = 5.7


def test_directories_load(built, data):
    out, _ = built
    split = dataset.open_split(data, "train")
    for name in ("clip-l", "clip-b"):
        clip = load_clip(out / name)
        tokenizer = load_clip_tokenizer(out / name)
        assert clip.config.text.vocab_size == tokenizer.vocab_size
        assert clip.config.text.eos_token_id == tokenizer.eos_id != 2
        pixels = Preprocessor.from_hf(out / name)(split[0].image)
        assert pixels.shape == (64, 64, 3)
    for name, load in (("mistral", load_mistral), ("gpt2", load_gpt2)):
        lm, tokenizer = load(out / name), load_tokenizer(out / name)
        assert lm.config.vocab_size == tokenizer.vocab_size
        ends = lm.config.bos_token_id, lm.config.eos_token_id
        assert ends == (tokenizer.bos_id, tokenizer.eos_id)


def test_transformers_reads_them(built):
    import transformers

    transformers.logging.set_verbosity_error()
    out, _ = built
    for name in ("clip-l", "clip-b"):
        transformers.CLIPModel.from_pretrained(out / name)
        theirs = transformers.CLIPTokenizer.from_pretrained(out / name)
        ours = load_clip_tokenizer(out / name)
        ids = theirs("A photo depicts a red picture")["input_ids"]
        assert ours(["A photo depicts a red picture"])[0, : len(ids)].tolist() == ids
    transformers.MistralForCausalLM.from_pretrained(out / "mistral")
    for family in (transformers.GPT2Tokenizer, transformers.AutoTokenizer):
        theirs, ours = family.from_pretrained(out / "gpt2"), load_tokenizer(out / "gpt2")
        text = "all of it is blue, a red picture"
        assert [*theirs(text)["input_ids"], theirs.eos_token_id] == ours.encode(text)
        assert theirs.bos_token == theirs.eos_token == "<|endoftext|>"
        assert len(theirs) == ours.vocab_size
        assert theirs("<|endoftext|>a")["input_ids"] == [ours.bos_id, ours.encode("a")[0]]


def test_the_gpt2_writes_what_transformers_writes_with_it(built):
    """A text begins after <|endoftext|> without a space, goes on in words, and ends."""
    import torch
    import transformers

    out, _ = built
    theirs = transformers.GPT2LMHeadModel.from_pretrained(out / "gpt2")
    ours, tokenizer = load_gpt2(out / "gpt2"), load_tokenizer(out / "gpt2")
    ids = [tokenizer.bos_id]
    with torch.no_grad():
        for _ in range(12):
            hidden, _ = ours.prefill(ours.embed(np.array([ids])))
            logits = np.asarray(ours.logits(hidden))[0]
            np.testing.assert_allclose(
                theirs(torch.tensor([ids])).logits[0].numpy(), logits, rtol=1e-4, atol=1e-4
            )
            ids.append(int(logits[-1].argmax()))
            if ids[-1] == tokenizer.eos_id:
                break
    text = tokenizer.decode(ids[1:])
    assert ids[-1] == tokenizer.eos_id and len(ids) > 2
    assert text == text.strip() and text.split()[0] in ("a", "all")


def test_the_two_clips_differ(built):
    out, _ = built
    a, b = (json.loads((out / name / "config.json").read_text()) for name in ("clip-l", "clip-b"))
    assert a["vision_config"]["hidden_act"] != b["vision_config"]["hidden_act"]
    assert hf_dir.weights_fingerprint(out / "clip-l") != hf_dir.weights_fingerprint(out / "clip-b")


def test_what_is_there_is_kept_and_what_is_gone_made_again(built, data, tmp_path):
    out, figures = built
    copy = shutil.copytree(out, tmp_path / "mini")
    for name in ("clip-b", "gpt2"):
        before = hf_dir.weights_fingerprint(copy / name)
        shutil.rmtree(copy / name)
        lines = []
        again = build(data, copy, recipe=SMALL, say=lines.append)
        assert len(lines) == 1 and lines[0].startswith(name)
        assert again["mistral"] == figures["mistral"]
        assert hf_dir.weights_fingerprint(copy / name) == before  # deterministic from the seed
    shutil.rmtree(copy / "gpt2")
    other = dataclasses.replace(SMALL, max_text_tokens=SMALL.max_text_tokens - 1)
    with pytest.raises(UserError, match="made of other recipe"):
        build(data, copy, recipe=other)
    assert not (copy / "gpt2").exists()
    with pytest.raises(UserError, match="made of other seed"):
        build(data, copy, seed=1, recipe=SMALL)


def test_two_at_a_time_are_as_good_as_one_by_one(built, data, tmp_path):
    out, figures = built
    copy = shutil.copytree(out, tmp_path / "mini")
    for name in ("clip-b", "gpt2"):
        shutil.rmtree(copy / name)
    lines = []
    again = build(data, copy, recipe=SMALL, workers=2, say=lines.append)
    assert list(again) == list(figures)
    assert sorted(line.split(":")[0] for line in lines) == ["clip-b", "gpt2"]
    for name in figures:
        # Products are divided among other numbers of cores.
        assert again[name] == pytest.approx(figures[name], rel=1e-3)


def test_an_interrupted_build_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(foundation, "train_pairs", stop)
    with pytest.raises(KeyboardInterrupt):
        build(data, tmp_path / "mini", recipe=SMALL)
    assert list((tmp_path / "mini").iterdir()) == []


def test_long_captions_keep_their_end_of_text(data, tmp_path, monkeypatch):
    """A caption cut in training still ends: pooling would otherwise read its first token."""
    seen = {}

    def look(towers, pixels, tokens, *_, **__):
        seen["rows"] = np.concatenate(tokens)
        seen["eos"] = towers.end_id
        raise KeyboardInterrupt

    monkeypatch.setattr(foundation, "train_pairs", look)
    with pytest.raises(KeyboardInterrupt):
        build(data, tmp_path / "mini", recipe=dataclasses.replace(SMALL, max_text_tokens=4))
    assert seen["rows"].shape[1] == 4
    assert (seen["rows"] == seen["eos"]).any(axis=1).all()


@pytest.fixture(scope="module", params=[None, 0.7])
def few_scenes(request, tmp_path_factory):
    settings = scenes.Settings(2, {"train": 6, "val": 3, "test": 3}, request.param)
    directory = tmp_path_factory.mktemp("few") / "scenes"
    examples = scenes.generate(settings.seed, settings.sizes, skew=settings.skew)
    card = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}
    kw = {"name": "scenes", "splits": list(settings.sizes), "description": "", "settings": card}
    builder.write(directory, examples, **kw)
    return directory, settings


def test_more_scenes_are_new_and_hold_no_pair_of_the_test_split(few_scenes):
    _, settings = few_scenes
    drawn = list(scenes.more(settings, 300))
    assert len({picture.tobytes() for _, picture, _ in drawn}) == 300
    again = list(scenes.more(settings, 20))
    for (scene, picture, captions), (other, same, texts) in zip(drawn[:20], again, strict=True):
        assert scene == other and (picture == same).all() and captions == texts
    for scene, _, captions in drawn:
        assert world.HELD_OUT.isdisjoint(thing.pair for thing in scene.things)
        assert len(captions) == 5
        pairs = {pair for caption in captions for pair in shape_words(caption)}
        assert pairs and pairs.isdisjoint(world.HELD_OUT)
    persons = [any(" person" in c or " man" in c for c in captions) for *_, captions in drawn]
    assert any(persons) == (settings.skew is not None)


def test_more_scenes_mean_nothing_that_a_scene_of_the_dataset_means(monkeypatch):
    """A world of few scenes, so that the dice would repeat them."""
    settings = scenes.Settings(0, {"train": 5, "val": 5, "test": 5})
    sample = world.sample_scene
    few = {held_out: [sample(Dice("few", i), held_out=held_out) for i in range(20)]
           for held_out in (False, True)}  # fmt: skip
    monkeypatch.setattr(world, "sample_scene", lambda dice, held_out: dice.pick(few[held_out]))
    used = {scene.meaning for _, _, scene, _ in scenes.sampled(settings)}
    told = []
    render = draw.render
    monkeypatch.setattr(draw, "render", lambda s, dice: told.append(s.meaning) or render(s, dice))
    assert len(list(scenes.more(settings, 8))) == 8
    assert len(set(told)) == 8 and used.isdisjoint(told)


def test_clips_see_the_dataset_and_the_scenes_drawn_more(few_scenes):
    directory, settings = few_scenes
    train = dataset.open_split(directory, "train")
    material = Material(train, dataset.open_split(directory, "val"), settings, SMALL)
    assert material.train.pixels.shape == (6 + SMALL.scenes, 64, 64, 3)
    assert len(material.train.captions) == 6 + SMALL.scenes
    preprocessor = Preprocessor.for_size(64)
    for i in (0, 5):
        shown = preprocessor.normalise(material.train.pixels[i])
        np.testing.assert_array_equal(shown, preprocessor(train[i].image))
    known = {i: scene for _, i, scene, _ in scenes.sampled(settings)}
    own = patches.boxes([known[i] for i in train.ids])
    assert material.train.boxes is not None and (material.train.boxes[:6] == own).all()
    for (scene, picture, captions), i in zip(scenes.more(settings, 3), range(6, 9), strict=True):
        assert (material.train.pixels[i] == picture).all()
        assert material.train.captions[i] == captions
        assert (material.train.boxes[i] == patches.boxes([scene])[0]).all()


def test_more_scenes_are_of_scenes_alone(data, tmp_path):
    with pytest.raises(UserError, match="holds no scenes"):
        build(data, tmp_path / "m", scenes=5, recipe=SMALL)


def test_another_number_of_scenes_is_another_recipe(few_scenes, tmp_path, monkeypatch):
    directory, _ = few_scenes
    monkeypatch.setattr(foundation, "train_pairs", lambda towers, *_, **__: towers.model)
    monkeypatch.setattr(foundation, "train_lm", lambda model, *_, **__: model)
    build(directory, tmp_path / "m", recipe=SMALL, say=lambda _: None)
    with pytest.raises(UserError, match="made of other recipe"):
        build(directory, tmp_path / "m", recipe=SMALL, scenes=SMALL.scenes + 1)


def test_token_loss_counts_eos_and_neither_bos_nor_padding(built):
    out, _ = built
    config = load_mistral(out / "mistral").config
    structure, params = initialise(lambda key: Mistral(config, rngs=nnx.Rngs(key)), 0)
    loss = jax.jit(lambda tokens, n: token_loss(structure.merge(params), tokens, n))
    row = np.array([[1, 5, 6, 2, 9, 9]])
    total, count = loss(row, np.array([4]))
    assert count == 3
    other = row.copy()
    other[0, 4:] = 7
    assert loss(other, np.array([4]))[0] == total
    other[0, 3] = 8
    assert loss(other, np.array([4]))[0] != total


@pytest.mark.parametrize(
    ("axes", "inputs"),
    [
        (("embed", "heads", "head_dim"), (0,)),
        (("heads", "head_dim", "embed"), (0, 1)),
        (("embed", "mlp"), (0,)),
        (("mlp", "embed"), (0,)),
        (("patch", "patch", None, "embed"), (0, 1, 2)),
        (("embed",), None),
        (("vocab", "embed"), None),
        (("embed", "vocab"), None),
        (("position", "embed"), None),
        ((), None),
    ],
)
def test_muon_takes_hidden_kernels_only(axes, inputs):
    found = muon_dimensions(axes)
    assert (found and found.reduction_axis) == inputs


def test_a_recipe_of_few_steps():
    """`prepare foundation --steps`: of each training, at most; the rest is the recipe's."""
    short = Recipe().within(110)
    assert short.clip_l.looking.steps == 110 and Recipe().clip_l.looking.steps > 110
    assert short.clip_l.schedule == Recipe().clip_l.schedule
    assert short.clip_b.looking.steps == short.mistral.schedule.steps == 110
    assert short.clip_b.schedule == Recipe().clip_b.schedule
    assert Recipe().within(10**6) == Recipe()
