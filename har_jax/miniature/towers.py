"""A vision tower beside a text tower, new: what the miniature encoders of each family are made as.

CLIP and SigLIP have both. DINOv2 is a vision tower alone, which learnt from 142 million images and
no text: too many for a miniature. So its stand-in learns from captions, as the miniature CLIP does,
with a projection and CLIP's text tower, which are thrown away. It has DINOv2's architecture and is
read as one; what its features say is a CLIP's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from har_jax.interchange.families.clip import save_clip
from har_jax.interchange.families.registry import ENCODERS
from har_jax.interchange.families.siglip_towers import read_siglip, save_siglip
from har_jax.miniature.pretrain import Encode, Towers
from har_jax.miniature.recipes import ClipRecipe, Recipe
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, TextTower, VisionConfig
from har_jax.models.encoders.siglip_text import Siglip
from har_jax.models.layers import Linear, normal, param
from har_jax.text.siglip_tokenizer import train_siglip_tokenizer
from har_jax.text.tokenizer import ClipTokenizer, load_clip_tokenizer, train_clip_tokenizer
from har_jax.types import Int


class Accompanied(nnx.Module):
    """A vision tower that has no text tower of its own, with one."""

    def __init__(self, vision: Any, text: TextConfig, width: int, *, rngs: nnx.Rngs):
        d, axes = vision.config.hidden_size, ("embed", "projection")
        self.vision = vision
        how: dict[str, Any] = {"rngs": rngs, "dtype": jnp.float32}
        self.projection = Linear((d,), (width,), axes, init=normal(d**-0.5), **how)
        self.text = TextTower(text, width, **how)
        born = jax.nn.initializers.constant(CLIPConfig.logit_scale_init_value)
        self.logit_scale = param(rngs, (), (), born, jnp.float32)


def _clip_text(
    texts: Sequence[str], clip: ClipRecipe, recipe: Recipe, directory: Path
) -> tuple[Encode, TextConfig]:
    """A CLIP's tokenizer, written to `directory`, and the configuration of its text tower."""
    train_clip_tokenizer(texts, recipe.clip_vocab_size, directory)
    tokenizer: ClipTokenizer = load_clip_tokenizer(directory)

    def encode(texts: Sequence[str]) -> Int[np.ndarray, "N T"]:
        rows = tokenizer(texts)[:, : recipe.max_text_tokens]
        whole = (rows == tokenizer.eos_id).any(axis=1)
        rows[:, -1] = np.where(whole, rows[:, -1], tokenizer.eos_id)
        return rows

    ids: Any = {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.bos_id}
    ids |= dict.fromkeys(("eos_token_id", "pad_token_id"), tokenizer.eos_id)
    return encode, TextConfig(**clip.text, **ids)


def _clip(
    texts: Sequence[str], clip: ClipRecipe, recipe: Recipe, directory: Path, rngs: nnx.Rngs
) -> Towers:
    encode, text = _clip_text(texts, clip, recipe, directory)
    config = CLIPConfig(VisionConfig(**clip.vision), text, projection_dim=clip.projection_dim)
    model = CLIP(config, rngs=rngs)
    return Towers(model, lambda m, x: m.vision.projection(x), encode, text.eos_token_id, save_clip)


def _siglip(
    texts: Sequence[str], clip: ClipRecipe, recipe: Recipe, directory: Path, rngs: nnx.Rngs
) -> Towers:
    """Its vision tower's width is that of the shared space. All texts have one length."""
    length = recipe.max_text_tokens
    tokenizer = train_siglip_tokenizer(texts, recipe.clip_vocab_size, directory, length)
    vision = _plain(clip.vision)
    text = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": length}
    text |= _plain(clip.text) | {"projection_size": vision["hidden_size"]}
    model = Siglip(read_siglip({"vision_config": vision, "text_config": text}), rngs=rngs)
    return Towers(model, lambda m, x: x, tokenizer, None, save_siglip)


def _alone(
    family: str, keys: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> Callable[..., Towers]:
    """A tower alone; `keys` spells its sizes as its `config.json` does."""

    def make(
        texts: Sequence[str], clip: ClipRecipe, recipe: Recipe, directory: Path, rngs: nnx.Rngs
    ) -> Towers:
        del directory  # nothing of the texts is kept
        with tempfile.TemporaryDirectory() as folder:
            encode, text = _clip_text(texts, clip, recipe, Path(folder))
        row = ENCODERS[family]
        config = row.read({"model_type": family, **keys(clip.vision)}, f"a miniature {family}")
        vision = row.build(config, rngs=rngs, dtype=jnp.float32)
        model = Accompanied(vision, text, clip.projection_dim, rngs=rngs)

        def save(model: Any, directory: Path) -> None:
            row.save_module(model.vision, directory)

        return Towers(model, lambda m, x: m.projection(x), encode, text.eos_token_id, save)

    return make


def _plain(tower: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIP's sizes, with the activation of another family."""
    return {key: value for key, value in tower.items() if key != "hidden_act"}


def _dinov2(tower: Mapping[str, Any]) -> dict[str, Any]:
    found = _plain(tower)
    ratio = found.pop("intermediate_size") / found["hidden_size"]
    return {**found, "mlp_ratio": max(1, round(ratio))}  # transformers takes whole ones only


FAMILIES: dict[str, Callable[..., Towers]] = {
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _alone("dinov2", _dinov2),
    "dinov2_with_registers": _alone("dinov2_with_registers", _dinov2),
}
"""(texts, sizes, recipe, directory of the tokenizer, rngs) to the towers, by the family."""
