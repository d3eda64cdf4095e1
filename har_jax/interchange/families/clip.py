"""CLIP from and to Hugging Face directories.

`load_vision` reads the vision tower alone, from a directory of a whole CLIP or of its vision part.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import Keys, typed
from har_jax.interchange import hf_dir
from har_jax.interchange.families.family import Family, TwoTowers
from har_jax.interchange.families.keys import FIXED, OF_TOWERS, WHY, keys_of, read_present
from har_jax.interchange.table import Row, linear, norm, tower_layers
from har_jax.models.encoders.clip import (
    CLIP,
    CLIPConfig,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
)
from har_jax.models.sizes import Exponent, Width
from har_jax.text.tokenizer import ClipTokenizer, load_clip_tokenizer

_BUFFERS = r"(.*\.)?position_ids"
"""Written by transformers before 4.31; no weights."""

Tower = typing.TypeVar("Tower", VisionConfig, TextConfig)


def _keys(tower: type, *more: str) -> Keys:
    # The width of a projection is that of the whole CLIP. LLaVA's vision towers have a
    # vocabulary too, which nothing reads.
    return keys_of(
        tower,
        fixed={"model_type": ("clip", *more)},
        harmless=("projection_dim", "vocab_size"),
    )


_KEYS = {
    VisionConfig: _keys(VisionConfig, "clip_vision_model"),
    TextConfig: _keys(TextConfig, "clip_text_model"),
}
_WHOLE = Keys(
    used={
        "projection_dim": Width | None,
        "logit_scale_init_value": Exponent | None,
        **dict.fromkeys(("text_config", "text_config_dict"), dict[str, Any] | None),
        **dict.fromkeys(("vision_config", "vision_config_dict"), dict[str, Any] | None),
    },
    fixed=FIXED,
    harmless=OF_TOWERS,
    why=WHY,
)


def read_tower(cls: type[Tower], hf: Mapping[str, Any], where: str) -> Tower:
    """From the part of a `config.json` that describes a tower."""
    return cls(**read_present(_KEYS[cls], hf, where))


def read_clip(hf: Mapping[str, Any], where: str = "CLIP config") -> CLIPConfig:
    """From a `config.json`. As in transformers, an old `*_config_dict` replaces `*_config`.

    Raises:
      UserError: a number out of its range, or a key that changes, or may change, what is computed.
    """
    found = _WHOLE.read(hf, where)

    def part(cls: type[Tower], name: str) -> Tower:
        old = found.pop(f"{name}_dict", None)
        new = found.pop(name, None)
        return read_tower(cls, (new or {}) if old is None else old, f"{where}: {name}")

    vision, text = part(VisionConfig, "vision_config"), part(TextConfig, "text_config")
    return CLIPConfig(vision, text, **{k: v for k, v in found.items() if v is not None})


def vision_table(hf: str = "vision_model.", path: str = "") -> list[Row]:
    """`hf` and `path` are what precedes the names in the file, and ours."""
    embeddings, patch = f"{hf}embeddings.", "patch_embedding"
    return [
        Row(f"{embeddings}class_embedding", f"{path}class_embedding", "d -> d"),
        Row(f"{embeddings}{patch}.weight", f"{path}{patch}.kernel", "d c p q -> p q c d"),
        Row(f"{embeddings}position_embedding.weight", f"{path}position_embedding", "s d -> s d"),
        *norm(f"{hf}pre_layrnorm", f"{path}pre_norm", bias=True),  # the file's own spelling
        *tower_layers(f"{hf}encoder.layers.{{}}", f"{path}layers.{{}}"),
        *norm(f"{hf}post_layernorm", f"{path}post_norm", bias=True),
        *linear("visual_projection", f"{path}projection"),
    ]


def text_table(path: str = "") -> list[Row]:
    """See `vision_table`."""
    text, embeddings = "text_model.", "text_model.embeddings."
    tokens, positions = f"{path}token_embedding.embedding", f"{path}position_embedding"
    return [
        Row(f"{embeddings}token_embedding.weight", tokens, "v d -> v d"),
        Row(f"{embeddings}position_embedding.weight", positions, "t d -> t d"),
        *tower_layers(f"{text}encoder.layers.{{}}", f"{path}layers.{{}}"),
        *norm(f"{text}final_layer_norm", f"{path}final_norm", bias=True),
        *linear("text_projection", f"{path}projection"),
    ]


def clip_table() -> list[Row]:
    return [
        Row("logit_scale", "logit_scale", "->"),
        *vision_table(path="vision."),
        *text_table("text."),
    ]


# The tower and the width of its projection, None without: from a whole CLIP or its vision part.
Seeing = tuple[VisionConfig, int | None]


def _vision_config(hf: Mapping[str, Any], where: str = "CLIP config") -> Seeing:
    if hf["model_type"] == "clip":
        whole = read_clip(hf, where)
        return whole.vision, whole.projection_dim
    width = typed(hf.get("projection_dim", 512), Width, f"{where}: projection_dim")
    return read_tower(VisionConfig, hf, where), width


CLIP_FAMILY: Family[CLIPConfig] = Family(
    ("clip",),
    read_clip,
    CLIPConfig.to_hf,
    CLIP,
    clip_table(),
    lambda config: _BUFFERS,
)

VISION_FAMILY: Family[Seeing] = Family(
    ("clip", "clip_vision_model"),
    _vision_config,
    lambda tower: CLIPConfig(tower[0], projection_dim=tower[1] or 512).to_hf()["vision_config"],
    lambda tower, **options: VisionTower(*tower, **options),
    vision_table(),
    lambda tower: (
        rf"{_BUFFERS}|text_model\..*|text_projection\..*|logit_scale"
        + (r"|visual_projection\..*" * (tower[1] is None))
    ),
    {"vision_model.": ("",)},  # transformers 5's `CLIPVisionModel`
)

# The tower alone, as a captioner reads it.
CLIP_VISION: Family[VisionConfig] = Family(
    ("clip_vision_model", "clip"),
    lambda hf, where: _vision_config(hf, where)[0],
    lambda config: VISION_FAMILY.write((config, None)),
    VisionTower,
    vision_table(),
    lambda config: VISION_FAMILY.ignore((config, None)),
    VISION_FAMILY.places,
)

# The text tower and the width of its projection, as `VISION_FAMILY` has the other one.
_TEXT_FAMILY: Family[tuple[TextConfig, int]] = Family(
    ("clip",),
    lambda hf, where: ((whole := read_clip(hf, where)).text, whole.projection_dim),
    lambda config: CLIPConfig(text=config[0], projection_dim=config[1]).to_hf(),
    lambda tower, **options: TextTower(*tower, **options),
    text_table(),
    lambda config: rf"{_BUFFERS}|vision_model\..*|visual_projection\..*|logit_scale",
)


def _tokenizer(directory: Path, config: CLIPConfig) -> ClipTokenizer:
    """The text tower reads its answer off the end-of-text token. Where the tokenizer writes
    another one, every caption has the same embedding, and CLIPScore is a constant that looks like
    a value."""
    tokenizer, text = load_clip_tokenizer(directory), config.text
    # 2: configs from before transformers' PR #24773, for which the tower takes the highest id.
    legacy = text.eos_token_id == 2 and tokenizer.eos_id == tokenizer.vocab_size - 1
    if tokenizer.eos_id != text.eos_token_id and not legacy:
        raise UserError(
            f"{directory}: its tokenizer ends texts with id {tokenizer.eos_id}, but text_config."
            f"eos_token_id in config.json is {text.eos_token_id}; put the tokenizer of that CLIP "
            "there, or correct the id"
        )
    return tokenizer


CLIP_TOWERS: TwoTowers[CLIPConfig] = TwoTowers(
    "CLIP",
    CLIP_FAMILY,
    {
        "vision": (VISION_FAMILY, lambda config: (config.vision, config.projection_dim)),
        "text": (_TEXT_FAMILY, lambda config: (config.text, config.projection_dim)),
    },
    lambda config: config.projection_dim,
    _tokenizer,
    lambda config: config.text.vocab_size,
    causal=True,
)


def load_vision(
    directory: str | Path, *, projection: bool = False, **placement: Any
) -> VisionTower:
    """The vision tower alone, with `projection` or without; no text weights are read.

    Args:
      placement: `mesh`, `rules` and `dtype`, as of `Family.load`.
    """
    path = hf_dir.resolve(directory)
    config, width = VISION_FAMILY.read_config(path)
    return VISION_FAMILY.load(path, config=(config, width if projection else None), **placement)


load_clip, save_clip = CLIP_FAMILY.load, CLIP_FAMILY.save_module
