"""A captioner as a Hugging Face LLaVA directory: `transformers.LlavaForConditionalGeneration`.

LLaVA (Liu et al. 2023, arXiv:2304.08485) reads what our captioner reads: patch tokens of one layer
of a CLIP vision tower, through linear, gelu, linear, between the embeddings of the text. The input
ids of a picture are `<bos>`, P times `<image>`, then the prompt's, if any; the caption follows.
Weights carry the names of the models on the hub (`language_model.model...`,
`vision_tower.vision_model...`); read are also those of transformers' modules since 4.52
(`model.language_model...`, `lm_head`).

The row of `<image>`: LLaVA marks the places of visual tokens by an id of its own, so one id joins
the vocabulary, and one row the embeddings and the output layer. The row is the mean of all others.
Its logit is then the mean of their logits: whatever the hidden state, it is never the highest, and
takes less than an even share of the probability. (A row of zeros would give the logit 0, which wins
where all others are negative.) `suppress_tokens` in generation_config.json takes it, and every
other row that no token has, out of sampling and beams altogether. Where the model has more rows
than its tokenizer ids, `<image>` gets the first free one and nothing is added.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from har_jax.config import VisionTokens
from har_jax.data.images import Preprocessor
from har_jax.data.preprocessor_config import has_preprocessor
from har_jax.distributed import gather
from har_jax.errors import UserError
from har_jax.foreign import Keys, shortened
from har_jax.interchange import hf_dir
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.keys import FIXED, HARMLESS, WHY
from har_jax.interchange.families.registry import (
    DECODERS,
    ENCODERS,
    encoder_family_of,
    family_of,
)
from har_jax.interchange.families.unsupported import OTHER_DECODERS, OTHER_ENCODERS
from har_jax.interchange.llava_processor import (
    IMAGE_TOKEN,
    generation_config,
    tokenizer_config,
    tokenizer_with_image,
    with_image_row,
)
from har_jax.interchange.table import Places, Row, linear
from har_jax.interchange.weights import load, save
from har_jax.models.captioner import Captioner, CaptionerConfig, first_token
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Params, Structure
from har_jax.models.lora import is_factor
from har_jax.models.sizes import Layer, TokenId
from har_jax.sharding import Rules
from har_jax.text.tokenizer import CaptionTokenizer

KEYS = Keys(
    used={
        "image_token_index": TokenId | None,
        "image_token_id": TokenId | None,
        "vision_feature_layer": Layer | list[Layer] | None,
        "vision_feature_select_strategy": Literal["default", "full"] | None,
        "text_config": dict[str, Any],
        "vision_config": dict[str, Any],
        "tie_word_embeddings": bool | None,
        "har_jax": dict[str, Any] | None,
    },
    fixed={
        **FIXED,
        "projector_hidden_act": ("gelu",),
        "multimodal_projector_bias": (True,),
    },
    # The text's own configuration says how many words there are, and whether embeddings are tied.
    harmless=HARMLESS | {"image_seq_length", "vocab_size", "hidden_size"},
    why=WHY,
)


def check_expressible(config: CaptionerConfig) -> EncoderConfig:
    """Its tower; `UserError` saying why, if LLaVA has no place for this captioner."""
    if config.vision is None:
        raise UserError(
            "a captioner of imported features cannot be exported as LLaVA: it has no encoder of "
            "images; --format=decoder exports the decoder alone"
        )
    if config.projector != "patch":
        raise UserError(
            f"a captioner with model.projector={config.projector!r} cannot be exported as LLaVA: "
            f"it makes {config.prefix_tokens} prefix tokens of the image's one pooled embedding, "
            "where LLaVA maps each patch to one token; keep the run as it is (load_captioner), or "
            "train with model.projector=patch; --format=decoder exports the decoder alone"
        )
    width, hidden = config.lm.hidden_size, config.projector_hidden
    if hidden not in (0, width):
        raise UserError(
            f"a captioner with model.projector_hidden={hidden} cannot be exported as LLaVA, whose "
            f"projector is as wide as its decoder, {width} here; train with "
            f"model.projector_hidden=0 or {width}; --format=decoder exports the decoder alone"
        )
    if first_token(config.vision, config.vision_tokens) not in _STRATEGIES:
        raise UserError(
            f"a captioner with model.vision_tokens={config.vision_tokens!r} on a "
            f"{config.vision.what} cannot be exported as LLaVA, which drops the first of a layer's "
            f"tokens or none, but not the {config.vision.n_extra} before the patches; train with "
            "model.vision_tokens=all or after_first; --format=decoder exports the decoder alone"
        )
    return config.vision


_STRATEGIES = {0: "full", 1: "default"}
"""`vision_feature_select_strategy`, by the first token that is read."""


def _vision_tokens(tower: EncoderConfig, strategy: str | None) -> VisionTokens:
    """What a strategy means of a tower: whatever it is, LLaVA's default drops one token."""
    first = 0 if strategy == "full" else 1
    if first == tower.n_extra:
        return "patches"
    return "after_first" if first else "all"


def llava_table(config: CaptionerConfig) -> list[Row]:
    """Of a whole `Captioner` with a patch projector, as transformers names it in files."""
    projector, ours = "multi_modal_projector.linear", "projector.linear"
    lm, tower = family_of(config.lm), encoder_family_of(check_expressible(config))

    def of_text(hf: str) -> str:  # whatever the decoder's own files begin with
        begun = next((b for b in lm.places if hf.startswith(b)), None)
        return hf if begun is None else f"model.{hf.removeprefix(begun)}"

    return [
        *(Row(f"vision_tower.{r.hf}", f"vision.{r.path}", r.axes) for r in tower.table),
        *linear(f"{projector}_1", f"{ours}_1", bias="f -> f"),
        *linear(f"{projector}_2", f"{ours}_2", bias="f -> f"),
        *(Row(f"language_model.{of_text(r.hf)}", f"lm.{r.path}", r.axes) for r in lm.table),
    ]


def llava_places(config: CaptionerConfig) -> Places:
    """How else transformers has begun the names of `llava_table`, see `table.located`."""
    places: dict[str, tuple[str, ...]] = {
        "language_model.model.": ("model.language_model.", "language_model."),
        "language_model.lm_head.": ("lm_head.",),
        "multi_modal_projector.": ("model.multi_modal_projector.",),
    }
    tower = encoder_family_of(check_expressible(config)).places or {"": ()}
    for begun, others in tower.items():
        names = (begun, *others)
        within = ("model.vision_tower.", "vision_tower.")
        places[f"vision_tower.{begun}"] = tuple(w + name for w in within for name in names)
    return places


def config_to_hf(config: CaptionerConfig, image_id: int) -> dict[str, Any]:
    """The `config.json`; the vocabulary reaches to `image_id` at least."""
    tower = check_expressible(config)
    text = family_of(config.lm).write(_tied(config).lm)
    text["vocab_size"] = max(config.lm.vocab_size, image_id + 1)
    strategy = _STRATEGIES[first_token(tower, config.vision_tokens)]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_id,  # transformers' name for it on disk; `image_token_id` there
        "image_seq_length": config.visual_tokens,
        "vision_feature_layer": config.vision_layer,
        "vision_feature_select_strategy": strategy,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": encoder_family_of(tower).write(tower),
    }


def _tied(config: CaptionerConfig) -> CaptionerConfig:
    """The captioner as LLaVA can hold it: transformers ties its output layer to `embed_tokens`, so
    a decoder that calls its embeddings otherwise (GPT-2) gets an output layer of its own."""
    named = any(row.hf == "model.embed_tokens.weight" for row in family_of(config.lm).table)
    lm: Any = config.lm
    if named or not getattr(lm, "tie_word_embeddings", False):
        return config
    return dataclasses.replace(config, lm=dataclasses.replace(lm, tie_word_embeddings=False))


def save_llava(
    config: CaptionerConfig,
    params: Mapping[str, jax.Array],
    tokenizer: CaptionTokenizer,
    preprocessor: Mapping[str, Any],
    directory: str | os.PathLike[str],
    *,
    max_tokens: int,
    prompt: str = "",
) -> int:
    """Writes model, tokenizer and processor; returns the id of `<image>`.

    Args:
      config, params: of a captioner with a patch projector, without adapters.
      tokenizer: of its decoder.
      preprocessor: the contents of its `preprocessor_config.json`.
      directory: is made if need be; files of the same names are replaced.
      max_tokens: of a caption, the default of `generate`.
      prompt: the text of `config.prompt_ids`, for `load_llava`; transformers passes it over.

    Raises:
      UserError: LLaVA's architecture has no place for this captioner (`check_expressible`).
    """
    directory = Path(directory)
    vision = check_expressible(config)
    text, image_id = tokenizer_with_image(tokenizer)
    contents = {**config_to_hf(config, image_id), "har_jax": {"prompt": prompt}}
    weights = _completed(config, with_image_row(config, params, image_id))
    save(weights, directory, llava_table(config), contents)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, values in {
        "tokenizer_config.json": tokenizer_config(tokenizer),
        "preprocessor_config.json": {**preprocessor, "processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": vision.patch_size,
            "vision_feature_select_strategy": contents["vision_feature_select_strategy"],
            "num_additional_image_tokens": vision.n_extra,  # before the strategy takes one off
        },
        "generation_config.json": generation_config(config, max_tokens, image_id),
    }.items():
        hf_dir.write_json(directory / name, values)
    return image_id


def read_llava_config(path: Path) -> tuple[CaptionerConfig, dict[str, Any]]:
    """The configuration of a LLaVA directory, and what we left in it for ourselves.

    A row that only `<image>` stands for is not counted in the vocabulary: no caption has the word.

    Raises:
      UserError: no LLaVA, or one whose decoder or projector is of another kind.
    """
    where = str(path / "config.json")
    hf = hf_dir.read_config(path, ["llava"])
    found = KEYS.read(hf, where)
    lacking = [key for key in ("text_config", "vision_config") if key not in found]
    if lacking:
        raise UserError(
            f"{where} lacks {' and '.join(lacking)}, so it is not of a LLaVA that transformers "
            "reads; convert it with transformers' script, or give another directory"
        )
    lm: Any = _part(DECODERS, OTHER_DECODERS, "llama", found["text_config"], where, "text_config")
    if found.get("tie_word_embeddings"):  # either ties them, says transformers
        lm = dataclasses.replace(lm, tie_word_embeddings=True)
    if _image_id(found) == lm.vocab_size - 1:
        lm = dataclasses.replace(lm, vocab_size=lm.vocab_size - 1)
    layer = found.get("vision_feature_layer")
    if isinstance(layer, list) and len(layer) != 1:
        raise UserError(
            f"{where}: vision_feature_layer={layer} reads several layers of the tower at once, "
            "which is not supported; only one is, a number such as -2"
        )
    tower: EncoderConfig = _part(
        ENCODERS,
        OTHER_ENCODERS,
        "clip_vision_model",
        found["vision_config"],
        where,
        "vision_config",
    )
    if has_preprocessor(path):
        tower = tower.reading(*Preprocessor.from_hf(path).output_size)
    config = CaptionerConfig(
        vision=tower,
        lm=lm,
        vision_layer=-2 if layer is None else layer[0] if isinstance(layer, list) else layer,
        vision_tokens=_vision_tokens(tower, found.get("vision_feature_select_strategy")),
    )
    tower.check_layer(config.vision_layer)
    return config, found.get("har_jax") or {}


def _part(
    families: Mapping[str, Family],
    others: Mapping[str, str],
    default: str,
    values: Mapping[str, Any],
    where: str,
    key: str,
) -> Any:
    """One of the two networks within a LLaVA's `config.json`."""
    model_type = values.get("model_type", default)  # as transformers reads a part without one
    if not isinstance(model_type, str) or model_type not in families:
        why = others.get(model_type) if isinstance(model_type, str) else None
        raise UserError(
            f"{where}: {key} is of type {shortened(repr(model_type))}{f' ({why})' if why else ''}; "
            f"of a LLaVA are read those of type {', '.join(families)}"
        )
    return families[model_type].read({**values, "model_type": model_type}, f"{where}: {key}")


def image_id(path: Path) -> int:
    """The id of `<image>` in a LLaVA directory."""
    found = KEYS.read(hf_dir.read_config(path, ["llava"]), str(path / "config.json"))
    return _image_id(found)


def _image_id(found: Mapping[str, Any]) -> int:
    given = (found.get(key) for key in ("image_token_index", "image_token_id"))
    return next((i for i in given if i is not None), 32_000)


_PARTS = {
    "vision": r"(model\.)?vision_tower\..*",
    "projector": r"(model\.)?multi_modal_projector\..*",
    "lm": r"(model\.)?language_model\..*|lm_head\..*",
}
"""The networks of a LLaVA, and how the names of their tensors begin."""


def load_llava(
    structure: Structure[Captioner],
    config: CaptionerConfig,
    path: Path,
    mesh: Mesh,
    rules: Rules,
    parts: Collection[str] = tuple(_PARTS),
) -> Params:
    """The parameters of a LLaVA directory, straight into their shards.

    Args:
      structure: of the captioner; a row of `<image>` that it does not count is cut off.
      config: of the captioner, or what the directory itself says.
      parts: which of "vision", "projector" and "lm" are wanted; a decoder's adapters are not.
    """
    text = {"model_type": config.lm.model_type} | hf_dir.read_config(path, ["llava"])["text_config"]
    stored: Any = family_of(config.lm).read(text, str(path / "config.json"))
    heads = [n for n in hf_dir.open_weights(path)[0] if n.endswith("lm_head.weight")]
    tied = "lm" in parts and "lm.lm_head.kernel" not in structure.shapes
    if heads and tied and not stored.tie_word_embeddings:
        raise UserError(
            f"{path / 'config.json'}: tie_word_embeddings=True, but its text_config says False and "
            "the weights have an output layer; make both alike, as the weights are"
        )
    rows = {"lm.embed_tokens.embedding": 0, "lm.lm_head.kernel": 1}  # name → axis of the vocabulary
    shapes = {
        name: like
        for name, like in structure.shapes.items()
        if name.partition(".")[0] in parts and not is_factor(name)
    }
    for name, axis in rows.items():
        if name in shapes:
            shape = list(shapes[name].shape)
            shape[axis] = stored.vocab_size
            shapes[name] = shapes[name].update(shape=tuple(shape))
    tower = encoder_family_of(check_expressible(config))
    ignored = (family_of(config.lm).ignore(config.lm), tower.ignore(config.vision))
    ignore = r"(.*\.)?(" + "|".join(ignored) + ")"  # whatever the parts' names begin with
    ignore = "|".join([ignore, *(names for part, names in _PARTS.items() if part not in parts)])
    axes, table = structure.logical_axes, llava_table(config)
    placement: dict[str, Any] = {"mesh": mesh, "rules": rules, "places": llava_places(config)}
    params = load(shapes, axes, path, table, ignore=ignore, **placement)
    longer = {name: params.pop(name) for name in rows if name in params}
    wanted = structure.shapes

    def cut(params: Params) -> Params:
        return {n: jax.lax.slice(x, [0] * x.ndim, wanted[n].shape) for n, x in params.items()}

    shardings = structure.shardings(mesh, rules)
    out = {name: shardings[name] for name in longer}
    return params | jax.jit(cut, out_shardings=out, donate_argnums=0)(longer)


def _completed(config: CaptionerConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """With what transformers' modules have besides: an output layer of its own where `_tied` says
    so, and parameters of the tower that captioning never reads (DINOv2's token of what is masked),
    as zeros."""
    made = dict(params)
    if _tied(config) is not config:
        made["lm.lm_head.kernel"] = np.ascontiguousarray(
            gather(made["lm.embed_tokens.embedding"]).T
        )
    tower = check_expressible(config)
    whole = encoder_family_of(tower).structure(tower, "float32").shapes
    for name, like in whole.items():
        if not name.startswith("layers.") and f"vision.{name}" not in made:
            made[f"vision.{name}"] = np.zeros(like.shape, like.dtype)
    return made
