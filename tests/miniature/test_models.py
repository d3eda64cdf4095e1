"""The miniature foundation models: HF directories that load here and in transformers."""

import dataclasses
import io
import json

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
from har_jax.interchange.families.mistral import load_mistral
from har_jax.miniature import models as foundation
from har_jax.miniature.models import CLIP_B, CLIP_L, MISTRAL, Recipe, build
from har_jax.miniature.pretrain import Schedule, muon_dimensions, token_loss
from har_jax.models.decoders import Mistral
from har_jax.text.tokenizer import load_clip_tokenizer, load_tokenizer
from tests.helpers import initialise

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "white": (250,) * 3}


def small(recipe, schedule: Schedule):
    if dataclasses.is_dataclass(recipe) and hasattr(recipe, "vision"):
        tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                 "num_attention_heads": 2}  # fmt: skip
        vision, text = {**recipe.vision, **tower}, {**recipe.text, **tower}
        return dataclasses.replace(recipe, vision=vision, text=text, schedule=schedule)
    model = {**recipe.model, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
    return dataclasses.replace(recipe, model=model, schedule=schedule)


SMALL = Recipe(
    clip_l=small(CLIP_L, Schedule(60, 24)),
    clip_b=small(CLIP_B, Schedule(3, 24)),
    mistral=dataclasses.replace(small(MISTRAL, Schedule(100, 16, lr=0.01)), max_epochs=100),
    clip_vocab_size=600,
    lm_vocab_size=300,
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
    assert figures["mistral"]["nats_per_token"] < 1.5  # a uniform guess: ln 300 = 5.7


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
    lm, tokenizer = load_mistral(out / "mistral"), load_tokenizer(out / "mistral")
    assert lm.config.vocab_size == tokenizer.vocab_size
    assert (lm.config.bos_token_id, lm.config.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)


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


def test_the_two_clips_differ(built):
    out, _ = built
    a, b = (json.loads((out / name / "config.json").read_text()) for name in ("clip-l", "clip-b"))
    assert a["vision_config"]["hidden_act"] != b["vision_config"]["hidden_act"]
    assert hf_dir.weights_fingerprint(out / "clip-l") != hf_dir.weights_fingerprint(out / "clip-b")


def test_what_is_there_is_kept_and_what_is_gone_made_again(built, data, tmp_path):
    import shutil

    out, figures = built
    copy = shutil.copytree(out, tmp_path / "mini")
    before = hf_dir.weights_fingerprint(copy / "clip-b")
    shutil.rmtree(copy / "clip-b")
    lines = []
    again = build(data, copy, recipe=SMALL, say=lines.append)
    assert len(lines) == 1 and lines[0].startswith("clip-b")
    assert again["mistral"] == figures["mistral"]
    assert hf_dir.weights_fingerprint(copy / "clip-b") == before  # deterministic from the seed
    with pytest.raises(UserError, match="made of other seed"):
        build(data, copy, seed=1, recipe=SMALL)


def test_an_interrupted_build_leaves_nothing_behind(data, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(foundation, "train_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        build(data, tmp_path / "mini", recipe=SMALL)
    assert list((tmp_path / "mini").iterdir()) == []


def test_long_captions_keep_their_end_of_text(data, tmp_path, monkeypatch):
    """A caption cut in training still ends: pooling would otherwise read its first token."""
    seen = {}

    def look(model, pixels, tokens, *_, **__):
        seen["rows"] = np.concatenate(tokens)
        seen["eos"] = model.config.text.eos_token_id
        raise KeyboardInterrupt

    monkeypatch.setattr(foundation, "train_clip", look)
    with pytest.raises(KeyboardInterrupt):
        build(data, tmp_path / "mini", recipe=dataclasses.replace(SMALL, max_text_tokens=4))
    assert seen["rows"].shape[1] == 4
    assert (seen["rows"] == seen["eos"]).any(axis=1).all()


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
