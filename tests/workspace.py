"""A small world on disk: a scenes dataset and random miniature models, as HF directories.

Built by the code that users run, so that every test of a command starts from real files.
"""

from __future__ import annotations

import json
import pathlib

import jax
from flax import nnx

from har_jax import prepare
from har_jax.data.dataset import open_split
from har_jax.data.images import Preprocessor
from har_jax.interchange.families.clip import save_clip
from har_jax.interchange.families.mistral import save_mistral
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from har_jax.text.tokenizer import (
    load_clip_tokenizer,
    load_tokenizer,
    train_clip_tokenizer,
    train_tokenizer,
)

IMAGE = 32


def build(root: pathlib.Path, *, train: int = 48, val: int = 16, test: int = 16) -> None:
    """`root/data`, and `root/models/{clip-l,clip-b,mistral}`."""
    code = prepare.main(
        ["scenes", f"--out={root / 'data'}"]
        + [f"--{split}={n}" for split, n in (("train", train), ("val", val), ("test", test))]
    )
    assert code == 0
    references = open_split(root / "data", "train").references()
    texts = [text for captions in references.values() for text in captions]
    for name, seed in (("clip-l", 0), ("clip-b", 1)):
        write_clip(root / "models" / name, texts, seed)
    write_mistral(root / "models" / "mistral", texts)


def write_clip(directory: pathlib.Path, texts: list[str], seed: int) -> None:
    context = 40
    train_clip_tokenizer(texts, 600, directory, context)
    tokenizer = load_clip_tokenizer(directory)
    config = CLIPConfig(
        vision=VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE,
            patch_size=16,
        ),
        text=TextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            max_position_embeddings=context,
        ),
        projection_dim=16,
    )
    save_clip(CLIP(config, rngs=nnx.Rngs(seed)), directory)
    preprocessor = Preprocessor.for_size(IMAGE)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor.to_hf()))


def write_mistral(directory: pathlib.Path, texts: list[str], *, vocab: int = 500) -> None:
    train_tokenizer(texts, vocab, directory)
    config = MistralConfig(
        vocab_size=load_tokenizer(directory).vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=None,
    )
    # Weights of a decided model: near-ties would be broken by rounding, and differ between meshes.
    graphdef, state = nnx.split(Mistral(config, rngs=nnx.Rngs(2)))
    state = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, state)
    save_mistral(nnx.merge(graphdef, state), directory)
