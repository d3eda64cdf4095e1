"""The miniature foundation models: two CLIPs and a Mistral, trained on a dataset in two minutes.

    OUT/clip-l     stands for ViT-L/14: the captioner's frozen encoder
    OUT/clip-b     stands for ViT-B/32: another architecture and seed; only scores CLIPScore
    OUT/mistral    stands for Mistral-7B: grouped-query attention, trained on caption text alone

Each is a Hugging Face directory with config, weights, tokenizer (and preprocessor), so that the
demo runs the code that published weights run. `foundation.json` beside them tells what they were
made of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from har_jax.data.dataset import Split, open_split, read_card
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import save_clip
from har_jax.interchange.families.mistral import save_mistral
from har_jax.metrics.clip_score import PROMPT
from har_jax.miniature.pretrain import Schedule, clip_figures, lm_figures, train_clip, train_lm
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from har_jax.progress import track
from har_jax.text.tokenizer import (
    load_clip_tokenizer,
    load_tokenizer,
    train_clip_tokenizer,
    train_tokenizer,
)

NAMES = ("clip-l", "clip-b", "mistral")
RECORD = "foundation.json"
IMAGE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """One CLIP. Sizes of the towers go to `VisionConfig` and `TextConfig`."""

    vision: dict[str, Any]
    text: dict[str, Any]
    projection_dim: int
    schedule: Schedule
    prompt: str = ""  # half of the texts are given it


@dataclasses.dataclass(frozen=True)
class LmRecipe:
    model: dict[str, Any]
    schedule: Schedule
    max_epochs: int = 20  # of a small dataset


def _tower(width: int, layers: int, heads: int, act: str, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
        **more,
    }


CLIP_L = ClipRecipe(
    vision=_tower(128, 4, 4, "quick_gelu", image_size=IMAGE_SIZE, patch_size=16),
    text=_tower(64, 2, 4, "quick_gelu"),
    projection_dim=64,
    schedule=Schedule(steps=240, batch_size=256),
)
CLIP_B = ClipRecipe(
    vision=_tower(96, 3, 6, "gelu", image_size=IMAGE_SIZE, patch_size=16),
    text=_tower(80, 2, 5, "gelu"),
    projection_dim=48,
    schedule=Schedule(steps=200, batch_size=128),
    prompt=PROMPT,  # as in CLIPScore
)
MISTRAL = LmRecipe(
    model={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "sliding_window": None,
    },
    schedule=Schedule(steps=120, batch_size=128),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All three. `max_images` bounds memory and time; of a large dataset the first are taken."""

    clip_l: ClipRecipe = CLIP_L
    clip_b: ClipRecipe = CLIP_B
    mistral: LmRecipe = MISTRAL
    clip_vocab_size: int = 1000
    lm_vocab_size: int = 2000
    max_images: int = 8000
    max_text_tokens: int = 40  # of a caption in training; the towers read 77 as OpenAI's do


def build(
    data_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Makes what is missing of `out_dir`/{clip-l,clip-b,mistral}; returns the figures of each.

    Args:
      data_dir: a prepared dataset with a split "train"; figures come from "val" where there is one.
      say: takes a line on each model.

    Raises:
      UserError: no such dataset, or `out_dir` holds models of other data, seed or sizes.
    """
    recipe = recipe or Recipe()
    out = Path(out_dir)
    train = open_split(data_dir, "train")
    splits = read_card(data_dir).get("splits", {})
    held_out = open_split(data_dir, "val") if "val" in splits else train
    data, sizes = _digest([train.ids, train.captions]), _digest(dataclasses.asdict(recipe))
    origin = {"data": data, "seed": seed, "recipe": sizes}
    done = {name: _figures_of(out / name, origin) for name in NAMES}
    missing = [name for name, figures in done.items() if figures is None]
    material = _Material(train, held_out, recipe)
    for name in missing:
        with hf_dir.staging(out / name) as made:
            if name == "mistral":
                figures = _build_lm(made, train, held_out, recipe, seed)
            else:
                clip = recipe.clip_l if name == "clip-l" else recipe.clip_b
                figures = _build_clip(made, material, clip, recipe, seed + NAMES.index(name), name)
            hf_dir.write_json(made / RECORD, {**origin, "figures": figures})
        done[name] = figures
        say(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
    return {name: figures or {} for name, figures in done.items()}


def _figures_of(directory: Path, origin: dict[str, Any]) -> dict[str, float] | None:
    """The figures of a model that is there already, None if it is not."""
    if not (directory / "config.json").exists():
        return None
    record = hf_dir.read_json(directory / RECORD) if (directory / RECORD).exists() else {}
    other = [key for key, value in origin.items() if record.get(key) != value]
    if other:
        raise UserError(
            f"{directory} holds a model that was made of other {' and '.join(other)}; choose "
            "another --out, or remove it to have it made anew"
        )
    return record["figures"]


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class _Material:
    """Images and captions of both CLIPs, decoded once: they share the preprocessing."""

    def __init__(self, train: Split, held_out: Split, recipe: Recipe):
        self.train, self.held_out = train, held_out
        self.n_train = min(len(train), recipe.max_images)
        self.n_held_out = min(len(held_out), 256)
        self._pixels: dict[bool, np.ndarray] = {}

    def pixels(self, directory: Path, held_out: bool) -> np.ndarray:
        """float32 [N,H,W,3] as the preprocessor of `directory` makes them."""
        split, n = (self.held_out, self.n_held_out) if held_out else (self.train, self.n_train)
        if held_out not in self._pixels:
            preprocessor = Preprocessor.from_hf(directory)
            pixels = np.empty((n, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
            label = "reading images, held out" if held_out else "reading images"
            for i in track(range(n), desc=label, unit="image"):
                pixels[i] = preprocessor(split[i].image)
            self._pixels[held_out] = pixels
        return self._pixels[held_out]


def _build_clip(
    directory: Path, material: _Material, clip: ClipRecipe, recipe: Recipe, seed: int, label: str
) -> dict[str, float]:
    captions = material.train.captions[: material.n_train]
    config = Preprocessor.for_size(IMAGE_SIZE).to_hf()
    hf_dir.write_json(directory / "preprocessor_config.json", config)
    flat = [caption for those in captions for caption in those]
    train_clip_tokenizer([*flat, clip.prompt], recipe.clip_vocab_size, directory)
    tokenizer = load_clip_tokenizer(directory)

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = tokenizer(texts)[:, : recipe.max_text_tokens]
        whole = (rows == tokenizer.eos_id).any(axis=1)
        rows[:, -1] = np.where(whole, rows[:, -1], tokenizer.eos_id)
        return rows

    ids: Any = {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id}
    ids |= dict.fromkeys(("eos_token_id", "pad_token_id"), tokenizer.eos_id)
    vision, text = VisionConfig(**clip.vision), TextConfig(**clip.text, **ids)
    clip_config = CLIPConfig(vision=vision, text=text, projection_dim=clip.projection_dim)
    tokens_nt = encode(flat)
    if clip.prompt:
        tokens_nt = np.concatenate([tokens_nt, encode([clip.prompt + c for c in flat])])
    # Columns behind the first EOS of the longest row change nothing.
    tokens_nt = tokens_nt[:, : int((tokens_nt == tokenizer.eos_id).argmax(1).max()) + 1]
    n_sets = len(tokens_nt) // len(flat)
    ends = np.cumsum([len(those) for those in captions])
    sets = [np.split(part, ends[:-1]) for part in np.split(tokens_nt, n_sets)]
    tokens = [np.concatenate(rows) for rows in zip(*sets, strict=True)]
    start, pixels = CLIP(clip_config, rngs=nnx.Rngs(seed)), material.pixels(directory, False)
    label = f"training {label}"
    model = train_clip(start, pixels, tokens, clip.schedule, seed=seed, label=label)
    save_clip(model, directory)
    others = [those[0] for those in material.held_out.captions[: material.n_held_out]]
    texts_nt = encode([clip.prompt + caption for caption in others])
    return clip_figures(model, material.pixels(directory, True), texts_nt)


def _build_lm(
    directory: Path, train: Split, held_out: Split, recipe: Recipe, seed: int
) -> dict[str, float]:
    captions = [c for those in train.captions[: recipe.max_images] for c in those]
    train_tokenizer(captions, recipe.lm_vocab_size, directory)
    tokenizer = load_tokenizer(directory)

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        limit = recipe.max_text_tokens
        rows = [[tokenizer.bos_id, *tokenizer.encode(text)][:limit] for text in texts]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.full((len(rows), lengths.max()), tokenizer.eos_id, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return tokens, lengths

    ids = {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id}
    ids["eos_token_id"] = tokenizer.eos_id
    schedule = recipe.mistral.schedule
    per_epoch = max(1, len(captions) // schedule.batch_size)
    steps = min(schedule.steps, recipe.mistral.max_epochs * per_epoch)
    seed += NAMES.index("mistral")
    start = Mistral(MistralConfig(**ids, **recipe.mistral.model), rngs=nnx.Rngs(seed))
    schedule = dataclasses.replace(schedule, steps=steps)
    model = train_lm(start, *encode(captions), schedule, seed=seed, label="training mistral")
    save_mistral(model, directory)
    return lm_figures(model, *encode([those[0] for those in held_out.captions[:256]]))
