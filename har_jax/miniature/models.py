"""The miniature foundation models, trained on a dataset in minutes: two CLIPs, a Mistral, a GPT-2,
or an encoder and a decoder of other families.

    OUT/clip-l     stands for ViT-L/14: the captioner's frozen encoder
    OUT/clip-b     stands for ViT-B/32: another architecture and seed; only scores CLIPScore
    OUT/mistral    stands for Mistral-7B: grouped-query attention, trained on caption text alone
    OUT/gpt2       stands for GPT-2: writes open-ended text, trained on caption text alone

Of other families, OUT/FAMILY takes the place of OUT/clip-l or of OUT/mistral: as large, and trained
alike. OUT/gpt2 may be the captioner's decoder too.

Each is a Hugging Face directory with config, weights, tokenizer (and preprocessor), so that the
demo runs the code that published weights run. `foundation.json` beside them tells what they were
made of. Their sizes are in `recipes`.
"""

from __future__ import annotations

import dataclasses
import functools
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
from har_jax.foreign import listed
from har_jax.interchange import hf_dir
from har_jax.interchange.families.gpt2 import save_gpt2
from har_jax.interchange.families.registry import DECODERS
from har_jax.miniature.material import Material
from har_jax.miniature.pretrain import lm_figures, pair_figures, train_lm, train_pairs
from har_jax.miniature.recipes import ClipRecipe, LmRecipe, Recipe
from har_jax.miniature.scenes import Settings
from har_jax.miniature.towers import FAMILIES as ENCODERS
from har_jax.miniature.workers import side_by_side
from har_jax.models.decoders.gpt2 import GPT2, GPT2Config
from har_jax.text.tokenizer import CaptionTokenizer, train_gpt2_tokenizer, train_tokenizer
from har_jax.types import Int

NAMES = ("clip-l", "clip-b", "mistral", "gpt2")
RECORD = "foundation.json"


def names(encoder: str, decoder: str) -> tuple[str, ...]:
    """The directories that are made: `NAMES`, or those of other families in their places.

    Raises:
      UserError: no such family, or none that is drawn in miniature.
    """
    for option, family, known in (
        ("--encoder", encoder, ENCODERS),
        ("--decoder", decoder, DECODERS),
    ):
        if family not in known:
            raise UserError(
                f"{option}={family}: there is no such family; choose {listed(known, most=99)}"
            )
    seeing = "clip-l" if encoder == "clip" else encoder
    return tuple(dict.fromkeys((seeing, "clip-b", decoder, "gpt2")))


def build(
    data_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    scenes: int | None = None,
    steps: int | None = None,
    recipe: Recipe | None = None,
    encoder: str = "clip",
    decoder: str = "mistral",
    say: Callable[[str], None] = print,
    workers: int = 1,
) -> dict[str, dict[str, float]]:
    """Makes what is missing of `out_dir`'s `names`; returns figures of each.

    Args:
      data_dir: a prepared dataset with a split "train"; figures come from "val" where there is one.
      scenes: how many scenes beyond a dataset of scenes are drawn for the CLIPs, instead of the
        recipe's.
      steps: of each training, at most; for models that need not be good.
      encoder, decoder: the families of the captioner's, by their `model_type`.
      say: takes a line on each model.
      workers: how many are made at a time, each in a process on its share of the cores (`workers`);
        with 1 in this process. An accelerator belongs to one process, so there it has to be 1.

    Raises:
      UserError: no such dataset or family, more scenes of a dataset of other images, or `out_dir`
        holds models of other data, seed or recipe.
    """
    recipe, out, made_here = recipe or Recipe(), Path(out_dir), names(encoder, decoder)
    recipe = recipe if steps is None else recipe.within(steps)
    train, _ = _open_splits(data_dir)
    settings = Settings.from_card(read_card(data_dir))
    if scenes and settings is None:
        raise UserError(
            f"{data_dir} holds no scenes, so no more of them can be drawn: leave --scenes"
        )
    drawn = recipe.scenes if scenes is None else scenes
    recipe = dataclasses.replace(recipe, scenes=0 if settings is None else drawn)
    data, sizes = _digest([train.ids, train.captions]), _digest(dataclasses.asdict(recipe))
    origin = {"data": data, "seed": seed, "recipe": sizes}
    done = {name: _figures_of(out / name, origin) for name in made_here}
    missing = [name for name, figures in done.items() if figures is None]
    making = _Making(os.fspath(data_dir), out, made_here, encoder, seed, recipe, origin)
    one_by_one = ((name, making(name)) for name in missing)
    workers = min(workers, len(missing))
    made = side_by_side(making, missing, workers) if workers > 1 else one_by_one
    for name, figures in made:
        done[name] = figures
        say(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))
    return {name: figures or {} for name, figures in done.items()}


@dataclasses.dataclass(frozen=True)
class _Making:
    """Makes one of the models, in this process or, pickled, in another."""

    data_dir: str
    out: Path
    names: tuple[str, ...]
    encoder: str
    seed: int
    recipe: Recipe
    origin: dict[str, Any]

    @functools.cached_property
    def _splits(self) -> tuple[Split, Split]:
        return _open_splits(self.data_dir)

    @functools.cached_property
    def _material(self) -> Material:
        settings = Settings.from_card(read_card(self.data_dir))
        return Material(*self._splits, settings, self.recipe)

    def __call__(self, name: str) -> dict[str, float]:
        """Writes the model; returns its figures."""
        recipe, seed = self.recipe, self.seed + self.names.index(name)
        with hf_dir.staging(self.out / name) as made:
            if name in self.names[:2]:
                family = "clip" if name == "clip-b" else self.encoder
                figures = _build_towers(made, self._material, recipe, name, family, seed)
            elif name == "gpt2":
                figures = _build_gpt2(made, *self._splits, recipe, seed)
            else:
                figures = _build_lm(made, *self._splits, recipe, name, seed)
            hf_dir.write_json(made / RECORD, {**self.origin, "figures": figures})
        return figures


def _open_splits(data_dir: str | os.PathLike[str]) -> tuple[Split, Split]:
    """What is trained on, and what figures come from."""
    train = open_split(data_dir, "train")
    there = "val" in read_card(data_dir).get("splits", {})
    return train, open_split(data_dir, "val") if there else train


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


def _build_towers(
    directory: Path, material: Material, recipe: Recipe, name: str, family: str, seed: int
) -> dict[str, float]:
    clip: ClipRecipe = recipe.clip_b if name == "clip-b" else recipe.clip_l
    hf_dir.write_json(directory / "preprocessor_config.json", material.preprocessor.to_hf())
    captions = material.train.captions
    flat = [caption for those in captions for caption in those]
    towers = ENCODERS[family]([*flat, clip.prompt], clip, recipe, directory, nnx.Rngs(seed))
    tokens_nt = towers.encode(flat)
    if clip.prompt:
        tokens_nt = np.concatenate([tokens_nt, towers.encode([clip.prompt + c for c in flat])])
    if towers.end_id is not None:
        # Columns behind the first end of the longest row change nothing.
        tokens_nt = tokens_nt[:, : int((tokens_nt == towers.end_id).argmax(1).max()) + 1]
    n_sets = len(tokens_nt) // len(flat)
    ends = np.cumsum([len(those) for those in captions])
    sets = [np.split(part, ends[:-1]) for part in np.split(tokens_nt, n_sets)]
    tokens = [np.concatenate(rows) for rows in zip(*sets, strict=True)]
    model = train_pairs(
        towers,
        material.train,
        tokens,
        clip.schedule,
        clip.looking,
        normalise=material.preprocessor.normalise,
        seed=seed,
        label=f"training {name}",
    )
    towers.save(model, directory)
    others = material.held_out
    texts_nt = towers.encode([clip.prompt + those[0] for those in others.captions])
    pixels = material.preprocessor.normalise(others.pixels)
    return pair_figures(towers, model, pixels, texts_nt)


Rows = tuple[Int[np.ndarray, "N T"], Int[np.ndarray, " N"]]
"""Tokens and lengths, as `pretrain.token_loss` wants them."""


def _rows(tokenizer: CaptionTokenizer, texts: Sequence[str], limit: int) -> Rows:
    rows = [[*tokenizer.begin, *ids][:limit] for ids in tokenizer.encode_batch(texts)]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), tokenizer.eos_id, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def _captions(train: Split, recipe: Recipe) -> list[str]:
    return [c for those in train.captions[: recipe.max_images] for c in those]


def _build_lm(
    directory: Path, train: Split, held_out: Split, recipe: Recipe, name: str, seed: int
) -> dict[str, float]:
    """The captioner's decoder, of the family that is called as the directory."""
    family, lm = DECODERS[name], recipe.mistral
    captions = _captions(train, recipe)
    # A family whose configurations name no BOS by themselves has none.
    bos = family.read({"model_type": name}, name).bos_token_id is not None
    tokenizer = train_tokenizer(captions, lm.vocab_size, directory, bos=bos)
    # Mistral-7B's epsilon, for all of them.
    keys = {"model_type": name, "rms_norm_eps": 1e-5, **_ids(tokenizer), **lm.model}
    config = family.read(keys, f"a miniature {name}")
    if config.tie_word_embeddings:  # embeddings that are an output layer too learn as GPT-2's
        schedule = dataclasses.replace(lm.schedule, lr=recipe.gpt2.schedule.lr)
        lm = dataclasses.replace(lm, schedule=schedule)
    model = config.build(rngs=nnx.Rngs(seed))
    how = lm, recipe, f"training {name}", seed
    model, figures = _trained(model, tokenizer, captions, held_out, *how)
    family.save_module(model, directory)
    return figures


def _build_gpt2(
    directory: Path, train: Split, held_out: Split, recipe: Recipe, seed: int
) -> dict[str, float]:
    """ZeroCap's language model, as which it is trained here; a captioner reads it as well."""
    captions = _captions(train, recipe)
    tokenizer = train_gpt2_tokenizer(captions, recipe.gpt2.vocab_size, directory)
    model = GPT2(GPT2Config(**_ids(tokenizer), **recipe.gpt2.model), rngs=nnx.Rngs(seed))
    how = recipe.gpt2, recipe, "training gpt2", seed
    model, figures = _trained(model, tokenizer, captions, held_out, *how)
    save_gpt2(model, directory)
    return figures


def _ids(tokenizer: CaptionTokenizer) -> dict[str, Any]:
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {"vocab_size": tokenizer.vocab_size, **ends}


def _trained(
    model: Any,
    tokenizer: CaptionTokenizer,
    captions: list[str],
    held_out: Split,
    lm: LmRecipe,
    recipe: Recipe,
    label: str,
    seed: int,
) -> tuple[Any, dict[str, float]]:
    """The language model after its schedule, and its figures on captions held out."""
    per_epoch = max(1, len(captions) // lm.schedule.batch_size)
    steps = min(lm.schedule.steps, lm.max_epochs * per_epoch)
    schedule = dataclasses.replace(lm.schedule, steps=steps)
    limit = recipe.max_text_tokens
    rows = _rows(tokenizer, captions, limit)
    model = train_lm(model, *rows, schedule, seed=seed, label=label)
    others = [those[0] for those in held_out.captions[:256]]
    return model, lm_figures(model, *_rows(tokenizer, others, limit))
