"""The miniature foundation models, trained on a dataset in minutes: two CLIPs, a Mistral, a GPT-2.

    OUT/clip-l     stands for ViT-L/14: the captioner's frozen encoder
    OUT/clip-b     stands for ViT-B/32: another architecture and seed; only scores CLIPScore
    OUT/mistral    stands for Mistral-7B: grouped-query attention, trained on caption text alone
    OUT/gpt2       stands for GPT-2: writes open-ended text, trained on caption text alone

Each is a Hugging Face directory with config, weights, tokenizer (and preprocessor), so that the
demo runs the code that published weights run. `foundation.json` beside them tells what they were
made of. Their sizes are in `recipes`.
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
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import save_clip
from har_jax.interchange.families.gpt2 import save_gpt2
from har_jax.interchange.families.mistral import save_mistral
from har_jax.miniature.material import Material
from har_jax.miniature.pretrain import clip_figures, lm_figures, train_clip, train_lm
from har_jax.miniature.recipes import LmRecipe, Recipe
from har_jax.miniature.scenes import Settings
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.decoders.gpt2 import GPT2, GPT2Config
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from har_jax.text.tokenizer import (
    load_clip_tokenizer,
    train_clip_tokenizer,
    train_gpt2_tokenizer,
    train_tokenizer,
)
from har_jax.types import Int

NAMES = ("clip-l", "clip-b", "mistral", "gpt2")
RECORD = "foundation.json"


def build(
    data_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    scenes: int | None = None,
    recipe: Recipe | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Makes what is missing of `out_dir`/{clip-l,clip-b,mistral,gpt2}; returns figures of each.

    Args:
      data_dir: a prepared dataset with a split "train"; figures come from "val" where there is one.
      scenes: how many scenes beyond a dataset of scenes are drawn for the CLIPs, instead of the
        recipe's.
      say: takes a line on each model.

    Raises:
      UserError: no such dataset, more scenes of a dataset of other images, or `out_dir` holds
        models of other data, seed or recipe.
    """
    recipe, out = recipe or Recipe(), Path(out_dir)
    train = open_split(data_dir, "train")
    card = read_card(data_dir)
    held_out = open_split(data_dir, "val") if "val" in card.get("splits", {}) else train
    settings = Settings.from_card(card)
    if scenes and settings is None:
        raise UserError(
            f"{data_dir} holds no scenes, so no more of them can be drawn: leave --scenes"
        )
    drawn = recipe.scenes if scenes is None else scenes
    recipe = dataclasses.replace(recipe, scenes=0 if settings is None else drawn)
    data, sizes = _digest([train.ids, train.captions]), _digest(dataclasses.asdict(recipe))
    origin = {"data": data, "seed": seed, "recipe": sizes}
    done = {name: _figures_of(out / name, origin) for name in NAMES}
    missing = [name for name, figures in done.items() if figures is None]
    material = Material(train, held_out, settings, recipe)
    for name in missing:
        own_seed = seed + NAMES.index(name)
        with hf_dir.staging(out / name) as made:
            if name in ("clip-l", "clip-b"):
                figures = _build_clip(made, material, recipe, name, own_seed)
            else:
                figures = _build_lm(made, train, held_out, recipe, name, own_seed)
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


def _build_clip(
    directory: Path, material: Material, recipe: Recipe, name: str, seed: int
) -> dict[str, float]:
    clip = recipe.clip_l if name == "clip-l" else recipe.clip_b
    hf_dir.write_json(directory / "preprocessor_config.json", material.preprocessor.to_hf())
    captions = material.train.captions
    flat = [caption for those in captions for caption in those]
    train_clip_tokenizer([*flat, clip.prompt], recipe.clip_vocab_size, directory)
    tokenizer = load_clip_tokenizer(directory)

    def encode(texts: Sequence[str]) -> Int[np.ndarray, "N T"]:
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
    model = train_clip(
        CLIP(clip_config, rngs=nnx.Rngs(seed)),
        material.train,
        tokens,
        clip.schedule,
        clip.looking,
        normalise=material.preprocessor.normalise,
        seed=seed,
        label=f"training {name}",
    )
    save_clip(model, directory)
    others = material.held_out
    texts_nt = encode([clip.prompt + those[0] for those in others.captions])
    return clip_figures(model, material.preprocessor.normalise(others.pixels), texts_nt)


def _build_lm(
    directory: Path, train: Split, held_out: Split, recipe: Recipe, name: str, seed: int
) -> dict[str, float]:
    lm: LmRecipe = recipe.mistral if name == "mistral" else recipe.gpt2
    captions = [c for those in train.captions[: recipe.max_images] for c in those]
    train_tokenizer_of = train_tokenizer if name == "mistral" else train_gpt2_tokenizer
    tokenizer = train_tokenizer_of(captions, lm.vocab_size, directory)

    def encode(texts: Sequence[str]) -> tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]:
        limit = recipe.max_text_tokens
        rows = [[*tokenizer.begin, *ids][:limit] for ids in tokenizer.encode_batch(texts)]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.full((len(rows), lengths.max()), tokenizer.eos_id, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return tokens, lengths

    ids = {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id}
    ids["eos_token_id"] = tokenizer.eos_id
    per_epoch = max(1, len(captions) // lm.schedule.batch_size)
    steps = min(lm.schedule.steps, lm.max_epochs * per_epoch)
    schedule = dataclasses.replace(lm.schedule, steps=steps)
    rngs, kw = nnx.Rngs(seed), {"seed": seed, "label": f"training {name}"}
    text, others = encode(captions), encode([those[0] for those in held_out.captions[:256]])
    if name == "mistral":
        start = Mistral(MistralConfig(**ids, **lm.model), rngs=rngs)
        model = train_lm(start, *text, schedule, **kw)
        save_mistral(model, directory)
    else:
        model = train_lm(GPT2(GPT2Config(**ids, **lm.model), rngs=rngs), *text, schedule, **kw)
        save_gpt2(model, directory)
    return lm_figures(model, *others)
