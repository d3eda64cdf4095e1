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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import AddedToken, Tokenizer, processors

from har_jax.distributed import gather
from har_jax.errors import UserError
from har_jax.foreign import Keys, shortened
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import read_tower, vision_table
from har_jax.interchange.families.keys import FIXED, HARMLESS, WHY
from har_jax.interchange.families.registry import DECODERS, family_of
from har_jax.interchange.table import Row, linear
from har_jax.interchange.weights import load, save
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.encoders.clip import CLIPConfig, VisionConfig
from har_jax.models.functional import Params, Structure
from har_jax.models.sizes import Layer, TokenId
from har_jax.sharding import Rules
from har_jax.text.tokenizer import CaptionTokenizer

IMAGE_TOKEN = "<image>"

PLACES = {
    "language_model.model.": ("model.language_model.", "language_model."),
    "language_model.lm_head.": ("lm_head.",),
    "vision_tower.vision_model.": (
        "model.vision_tower.vision_model.",
        "model.vision_tower.",
        "vision_tower.",
    ),
    "multi_modal_projector.": ("model.multi_modal_projector.",),
}
"""How else transformers has begun the names of `llava_table`, see `table.located`."""

KEYS = Keys(
    used={
        "image_token_index": TokenId | None,
        "image_token_id": TokenId | None,
        "vision_feature_layer": Layer | list[Layer] | None,
        "text_config": dict[str, Any],
        "vision_config": dict[str, Any],
        "tie_word_embeddings": bool | None,
        "har_jax": dict[str, Any] | None,
    },
    fixed={
        **FIXED,
        "vision_feature_select_strategy": ("default",),
        "projector_hidden_act": ("gelu",),
        "multimodal_projector_bias": (True,),
    },
    # The text's own configuration says how many words there are, and whether embeddings are tied.
    harmless=HARMLESS | {"image_seq_length", "vocab_size", "hidden_size"},
    why=WHY,
)


def check_expressible(config: CaptionerConfig) -> VisionConfig:
    """Its tower; `UserError` saying why, if LLaVA has no place for this captioner."""
    if not isinstance(config.vision, VisionConfig):
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
    return config.vision


def llava_table(config: CaptionerConfig) -> list[Row]:
    """Of a whole `Captioner` with a patch projector."""
    projector, ours = "multi_modal_projector.linear", "projector.linear"
    lm = family_of(config.lm).table
    return [
        *vision_table("vision_tower.vision_model.", "vision."),
        *linear(f"{projector}_1", f"{ours}_1", bias="f -> f"),
        *linear(f"{projector}_2", f"{ours}_2", bias="f -> f"),
        *(Row(f"language_model.{r.hf}", f"lm.{r.path}", r.axes) for r in lm),
    ]


def config_to_hf(config: CaptionerConfig, image_id: int) -> dict[str, Any]:
    """The `config.json`; the vocabulary reaches to `image_id` at least."""
    text = family_of(config.lm).write(config.lm)
    text["vocab_size"] = max(config.lm.vocab_size, image_id + 1)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_id,  # transformers' name for it on disk; `image_token_id` there
        "image_seq_length": config.visual_tokens,
        "vision_feature_layer": config.vision_layer,
        "vision_feature_select_strategy": "default",  # the patches without CLS
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": text,
        "vision_config": CLIPConfig(vision=check_expressible(config)).to_hf()["vision_config"],
    }


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
    save(_extended(config, params, image_id), directory, llava_table(config), contents)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    for name, contents in {
        "tokenizer_config.json": tokenizer_config(tokenizer),
        "preprocessor_config.json": {**preprocessor, "processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": vision.patch_size,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,  # CLS, which the strategy then takes off
        },
        "generation_config.json": generation_config(config, max_tokens, image_id),
    }.items():
        hf_dir.write_json(directory / name, contents)
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
    tied = found.get("tie_word_embeddings")
    lacking = [key for key in ("text_config", "vision_config") if key not in found]
    if lacking:
        raise UserError(
            f"{where} lacks {' and '.join(lacking)}, so it is not of a LLaVA that transformers "
            "reads; convert it with transformers' script, or give another directory"
        )
    text = found["text_config"]
    model_type = text.get("model_type")
    if not isinstance(model_type, str) or model_type not in DECODERS:
        raise UserError(
            f"{path}: a LLaVA whose decoder is a {shortened(repr(model_type))}; only those with a "
            f"{' or '.join(map(repr, DECODERS))} are read"
        )
    lm: Any = DECODERS[model_type].read(text, f"{where}: text_config")
    if tied not in (None, False, lm.tie_word_embeddings):
        raise UserError(
            f"{where}: tie_word_embeddings={tied}, but its text_config says "
            f"{lm.tie_word_embeddings}; make both alike, as the weights are"
        )
    if _image_id(found) == lm.vocab_size - 1:
        lm = dataclasses.replace(lm, vocab_size=lm.vocab_size - 1)
    layer = found.get("vision_feature_layer")
    if isinstance(layer, list) and len(layer) != 1:
        raise UserError(
            f"{where}: vision_feature_layer={layer} reads several layers of the tower at once, "
            "which is not supported; only one is, a number such as -2"
        )
    tower = read_tower(VisionConfig, found["vision_config"], f"{where}: vision_config")
    config = CaptionerConfig(
        vision=tower,
        lm=lm,
        vision_layer=-2 if layer is None else layer[0] if isinstance(layer, list) else layer,
    )
    tower.check_layer(config.vision_layer)
    return config, found.get("har_jax") or {}


def image_id(path: Path) -> int:
    """The id of `<image>` in a LLaVA directory."""
    found = KEYS.read(hf_dir.read_config(path, ["llava"]), str(path / "config.json"))
    return _image_id(found)


def _image_id(found: Mapping[str, Any]) -> int:
    given = (found.get(key) for key in ("image_token_index", "image_token_id"))
    return next((i for i in given if i is not None), 32_000)


def load_llava(
    structure: Structure[Captioner], config: CaptionerConfig, path: Path, mesh: Mesh, rules: Rules
) -> Params:
    """The parameters of a LLaVA directory, straight into their shards.

    Args:
      structure, config: of the captioner; a row of `<image>` that it does not count is cut off.
    """
    text = hf_dir.read_config(path, ["llava"])["text_config"]
    stored = family_of(config.lm).read(text, str(path / "config.json")).vocab_size
    rows = {"lm.embed_tokens.embedding": 0, "lm.lm_head.kernel": 1}  # name → axis of the vocabulary
    shapes = dict(structure.shapes)
    for name, axis in rows.items():
        if name in shapes:
            shape = list(shapes[name].shape)
            shape[axis] = stored
            shapes[name] = shapes[name].update(shape=tuple(shape))
    ignore = r".*rotary_emb\.inv_freq|.*position_ids"  # buffers that old files carry
    if "lm.lm_head.kernel" not in shapes:
        ignore += r"|.*lm_head\.weight"
    axes, table = structure.logical_axes, llava_table(config)
    places: dict[str, Any] = {"mesh": mesh, "rules": rules, "places": PLACES}
    params = load(shapes, axes, path, table, ignore=ignore, **places)
    longer = {name: params.pop(name) for name in rows if name in params}
    wanted = structure.shapes

    def cut(params: Params) -> Params:
        return {n: jax.lax.slice(x, [0] * x.ndim, wanted[n].shape) for n, x in params.items()}

    shardings = structure.shardings(mesh, rules)
    out = {name: shardings[name] for name in longer}
    return params | jax.jit(cut, out_shardings=out, donate_argnums=0)(longer)


def generation_config(
    config: CaptionerConfig, max_tokens: int, image_id: int | None = None
) -> dict[str, Any]:
    """`generate` then writes as our decoding does: greedily, finished rows filled with EOS, and no
    row of the vocabulary that no token has."""
    suppressed = {i for first, stop in config.wordless for i in range(first, stop)}
    if image_id is not None:
        suppressed.add(image_id)
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids),
        "pad_token_id": config.eos_ids[0],
        "do_sample": False,
        "max_new_tokens": max_tokens,
        **({"suppress_tokens": sorted(suppressed)} if suppressed else {}),
    }


def _extended(
    config: CaptionerConfig, params: Mapping[str, jax.Array], image_id: int
) -> dict[str, Any]:
    """Parameters with rows up to `image_id`, each the mean of those that were there."""
    missing = image_id + 1 - config.lm.vocab_size
    longer: dict[str, Any] = dict(params)
    for name, axis in (("lm.embed_tokens.embedding", 0), ("lm.lm_head.kernel", 1)):
        if missing > 0 and name in params:  # tied, the output layer is the embeddings
            rows = gather(params[name])
            mean = np.mean(rows, axis=axis, keepdims=True, dtype=np.float64).astype(rows.dtype)
            longer[name] = np.concatenate([rows, np.repeat(mean, missing, axis=axis)], axis=axis)
    return longer


def tokenizer_with_image(tokenizer: CaptionTokenizer) -> tuple[str, int]:
    """`tokenizer.json` with `<image>`, and the id that it got.

    Its post-processor puts `<bos>` first, if there is one, as the decoder was trained.
    """
    grown = Tokenizer.from_str(tokenizer.to_json())
    grown.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    begin = [(tokenizer.token(i), i) for i in tokenizer.begin]
    before = "".join(f"{bos} " for bos, _ in begin)
    grown.post_processor = processors.TemplateProcessing(
        single=f"{before}$A", pair=f"{before}$A $B", special_tokens=begin
    )
    image_id = grown.token_to_id(IMAGE_TOKEN)
    assert image_id is not None  # it was just added
    return grown.to_str(pretty=True), image_id


def text_input(tokenizer: CaptionTokenizer, prompt: str = "") -> str:
    """The text that the exported processor turns into the ids of image and prompt.

    Some tokenizers, such as Mistral-7B's, mark the beginning of a text as a space; after `<image>`
    the same ids take a space that is written.

    Raises:
      UserError: neither way gives the prompt's ids.
    """
    text, image_id = tokenizer_with_image(tokenizer)
    grown = Tokenizer.from_str(text)
    wanted = [*tokenizer.begin, image_id, *tokenizer.encode(prompt)[:-1]]
    for between in ("", " "):
        if grown.encode(written := f"{IMAGE_TOKEN}{between}{prompt.strip()}").ids == wanted:
            return written
    raise UserError(
        f"the prompt {prompt!r} has other ids after {IMAGE_TOKEN} than alone, so the exported "
        "processor could not reproduce it; --format=decoder exports the decoder alone"
    )


def tokenizer_config(tokenizer: CaptionTokenizer) -> dict[str, Any]:
    eos = tokenizer.token(tokenizer.eos_id)
    return {
        # Tells transformers to take tokenizer.json as it is. Named by another class, such as
        # LlamaTokenizer, it rebuilds the pre-tokenizer that the class expects.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "bos_token": None if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id),
        "eos_token": eos,
        "pad_token": eos,
        "padding_side": "left",
        "image_token": IMAGE_TOKEN,
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
