"""The demo's pipeline with a miniature of every family: trained, trained further, exported, and
captioned alike by transformers."""

import dataclasses
import json

import numpy as np
import peft
import pytest
import torch
import transformers

import har_jax
from har_jax import evaluate, export, preflight, prepare, train
from har_jax.data.dataset import open_split
from har_jax.data.decode import decode
from har_jax.errors import UserError
from har_jax.interchange.families.registry import DECODERS
from har_jax.miniature import models as foundation
from har_jax.miniature.pretrain import Schedule
from har_jax.miniature.recipes import CLIP_B, CLIP_L, GPT2, MISTRAL, Recipe
from har_jax.miniature.towers import FAMILIES as ENCODERS
from har_jax.models import lora
from tests.conftest import ROOT
from tests.training.commands import train_arguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOKENS = 10
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 32,
}
_TEXT = {k: v for k, v in _TOWER.items() if k not in ("image_size", "patch_size")}
_DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_SHORT = Schedule(3, 8)
_LEARNT = Schedule(40, 16, lr=0.01)


def _clip(recipe):
    towers = {"vision": {**recipe.vision, **_TOWER}, "text": {**recipe.text, **_TEXT}}
    return dataclasses.replace(recipe, **towers, schedule=_SHORT, looking=Schedule(1, 8))


RECIPE = Recipe(
    clip_l=_clip(CLIP_L),
    clip_b=_clip(CLIP_B),
    mistral=dataclasses.replace(
        MISTRAL, model={**MISTRAL.model, **_DECODER}, schedule=_LEARNT, vocab_size=320
    ),
    gpt2=dataclasses.replace(
        GPT2,
        model={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 48},
        schedule=_LEARNT,
        vocab_size=320,
    ),
    scenes=0,
    clip_vocab_size=600,
)

ADAPTERS = {"model__lora__rank": 4, "model__lora__alpha": 8}
ALL_TOKENS = {"model__vision_tokens": "all"}
"""Of a tower with registers: LLaVA leaves out one of the tokens before the patches, or none."""
PAIRS = {
    ("siglip", "llama"): {},
    ("dinov2", "qwen2"): {**ADAPTERS, "model__frozen_dtype": "nf4"},
    ("dinov2_with_registers", "qwen3"): {"model__scan_layers": True, **ALL_TOKENS},
    ("clip", "smollm3"): {**ADAPTERS, "model__scan_layers": True},
    ("clip", "gpt2"): {**ADAPTERS, "model__lora__targets": "attn.qkv|mlp.up"},
}
"""Each encoder and each decoder once (Mistral has the other tests), and how it is trained."""
# A case is two minutes of compiling, so all of them are for `make long`.
OTHERS = [
    (
        encoder,
        decoder,
        {**ADAPTERS, "model__frozen_dtype": "int8"}
        | (ALL_TOKENS if encoder == "dinov2_with_registers" else {}),
    )
    for encoder in ENCODERS
    for decoder in DECODERS
    if (encoder, decoder) not in PAIRS
]
OTHERS = [*((*pair, changes) for pair, changes in PAIRS.items()), *OTHERS]
FURTHER = [pytest.param(*case, marks=pytest.mark.long) for case in OTHERS]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One dataset for all; models are added to `models` as they are asked for."""
    root = tmp_path_factory.mktemp("families")
    sizes = ["--train=24", "--val=4", "--test=4"]
    assert prepare.main(["scenes", f"--out={root / 'data'}", *sizes]) == 0
    return root


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def models(world, monkeypatch, encoder, decoder):
    """By the command, but for the recipe: (encoder's directory, decoder's)."""
    build = foundation.build
    monkeypatch.setattr(foundation, "build", lambda **kw: build(recipe=RECIPE, **kw))
    options = [f"--data={world / 'data'}", f"--out={world / 'models'}"]
    options += [f"--encoder={encoder}", f"--decoder={decoder}", "--workers=1"]
    assert prepare.main(["foundation", *options]) == 0
    seeing = "clip-l" if encoder == "clip" else encoder
    return world / "models" / seeing, world / "models" / decoder


@pytest.mark.parametrize(("encoder", "decoder", "changes"), FURTHER)
def test_from_scenes_to_transformers(world, tmp_path, monkeypatch, encoder, decoder, changes):
    seeing, writing = models(world, monkeypatch, encoder, decoder)
    settings = {"model__encoder": seeing, "model__lm": writing, "data__max_tokens": TOKENS}
    settings |= {"data__val_split": "", "optim__lr": 3e-2, "optim__name": "adamw", **changes}
    mle, scst, out = tmp_path / "mle", tmp_path / "scst", tmp_path / "out"
    assert train.main(train_arguments(world, mle, **settings, steps=3)) == 0
    more = {"init_from": mle, "steps": 2, "scst__samples": 2, "scst__reward": "cider_d"}
    argv = train_arguments(world, scst, "scst", **{**settings, "optim__lr": 1e-3}, **more)
    assert train.main(argv) == 0
    assert evaluate.main([f"--checkpoint={scst}", "--step=latest", f"--out={out}"]) == 0
    assert json.loads((out / "scores.json").read_text())["n_images"] == 4
    hf = tmp_path / "hf"
    assert export.main([f"--checkpoint={scst}", f"--out={hf}", "--step=latest"]) == 0

    captioner = har_jax.load_captioner(scst, step="latest", merge="model__lora__rank" in changes)
    test = open_split(world / "data", "test")
    images = [decode(test[i].image) for i in range(len(test))]
    pixels = captioner.preprocess([test[i].image for i in range(len(test))])
    ours, _ = captioner.generate_tokens(pixels)
    again = har_jax.load_captioner(hf)
    np.testing.assert_array_equal(again.generate_tokens(pixels)[0], ours)
    np.testing.assert_array_equal(written_by_transformers(captioner, hf, images, pixels), ours)
    if decoder == "gpt2":
        with pytest.raises(UserError, match=r"need 49 places, .* learned positions for 48"):
            captioner.generate(pixels, max_tokens=45)
    if "model__lora__rank" in changes and "model__frozen_dtype" not in changes:
        peft_says_the_same(scst, writing, tmp_path / "peft", ours)


def written_by_transformers(captioner, hf, images, pixels):
    """Greedy tokens [B,T] of a LLaVA directory, filled up as ours are."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(hf).eval()
    processor = transformers.AutoProcessor.from_pretrained(hf)
    inputs = processor(images=images, text=["<image>"] * len(images), return_tensors="pt")
    shown = inputs["pixel_values"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(shown, pixels)
    length = inputs["input_ids"].shape[1]
    assert length == captioner.blueprint.config.prefix_length
    with torch.no_grad():
        written = model.generate(**inputs)[:, length:].numpy()
    filled = np.full((len(images), TOKENS), captioner.tokenizer.eos_id)
    filled[:, : written.shape[1]] = written
    return filled


def peft_says_the_same(run, base, out, tokens):
    """Of the same texts, upon the base that the run had."""
    argv = [f"--checkpoint={run}", f"--out={out}", "--step=latest", "--format=peft"]
    assert export.main(argv) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor(tokens, dtype=torch.long)
    with torch.no_grad():
        plain = theirs(ids).logits.numpy()
        theirs = peft.PeftModel.from_pretrained(theirs, out).eval()
        wanted = theirs(ids).logits.numpy()
    scale = np.abs(wanted).max()
    assert np.abs(plain - wanted).max() > 1e-3 * scale  # the adapters matter
    loaded = har_jax.load_captioner(out)
    assert any(map(lora.is_factor, loaded.params))
    lm = loaded.structure.merge(loaded.params).lm
    hidden, _ = lm.prefill(lm.embed(tokens))
    assert np.abs(np.asarray(lm.logits(hidden)) - wanted).max() <= 1e-4 * scale


def test_families_that_are_not_there(world, capsys):
    argv = ["foundation", f"--data={world / 'data'}", f"--out={world / 'none'}"]
    assert prepare.main([*argv, "--decoder=qwen4"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: --decoder=qwen4: there is no such family;")
    assert all(family in said for family in DECODERS)
    assert prepare.main([*argv, "--encoder=dino"]) == 2
    said = capsys.readouterr().err
    assert "--encoder=dino" in said and all(family in said for family in ENCODERS)
    assert not (world / "none").exists()


@pytest.mark.long
def test_captions_end_before_learned_positions_do(world, monkeypatch, tmp_path, capsys):
    """GPT-2's: refused before a device, with the number that would do."""
    seeing, writing = models(world, monkeypatch, "clip", "gpt2")
    settings = {"model__encoder": seeing, "model__lm": writing, "data__val_split": ""}
    capsys.readouterr()
    # BOS and 4 patches, of 48 places; no place is needed for the last token.
    argv = train_arguments(world, tmp_path / "run", **settings, data__max_tokens=45)
    assert train.main(argv) == 2
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1 and "need 49 places, but this gpt2 has learned positions for 48" in said[0]
    )
    assert "lower max_tokens to at most 44" in said[0]
    argv[1] = "--topology=cpu:1"
    assert preflight.main(argv) == 2
    assert "learned positions for 48" in capsys.readouterr().err
