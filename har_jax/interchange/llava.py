"""A captioner as a Hugging Face LLaVA directory: `transformers.LlavaForConditionalGeneration`.

LLaVA (Liu et al. 2023, arXiv:2304.08485) reads what our captioner reads: patch tokens of one layer
of a CLIP vision tower, through linear, gelu, linear, between the embeddings of the text. The input
ids of a picture are `<bos>`, P times `<image>`, then the prompt's, if any; the caption follows.
Weights carry the names of the models on the hub (`language_model.model...`,
`vision_tower.vision_model...`).

The row of `<image>`: LLaVA marks the places of visual tokens by an id of its own, so one id joins
the vocabulary, and one row the embeddings and the output layer. The row is the mean of all others.
Its logit is then the mean of their logits: whatever the hidden state, it is never the highest, and
takes less than an even share of the probability. (A row of zeros would give the logit 0, which wins
where all others are negative.) `suppress_tokens` in generation_config.json takes it out of sampling
and beams altogether. Where the model has more rows than its tokenizer ids, `<image>` gets the first
free one and nothing is added.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tokenizers import AddedToken, Tokenizer, processors

from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import vision_table
from har_jax.interchange.families.mistral import mistral_table
from har_jax.interchange.table import Row, linear
from har_jax.interchange.weights import load, save
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.decoders.mistral import MistralConfig
from har_jax.models.encoders.clip import CLIPConfig, VisionConfig
from har_jax.models.functional import Params, split, structure_of
from har_jax.sharding import RULES, Rules
from har_jax.text.tokenizer import CaptionTokenizer

IMAGE_TOKEN = "<image>"


def check_expressible(config: CaptionerConfig) -> VisionConfig:
    """Its tower; `UserError` saying why, if LLaVA has no place for this captioner."""
    if config.vision is None:
        raise UserError(
            "a captioner of imported features cannot be exported as LLaVA: it has no encoder of "
            "images; --format=mistral exports the decoder alone"
        )
    if config.projector != "patch":
        raise UserError(
            f"a captioner with model.projector={config.projector!r} cannot be exported as LLaVA: "
            f"it makes {config.prefix_tokens} prefix tokens of the image's one pooled embedding, "
            "where LLaVA maps each patch to one token; keep the run as it is (load_captioner), or "
            "train with model.projector=patch; --format=mistral exports the decoder alone"
        )
    width, hidden = config.lm.hidden_size, config.projector_hidden
    if hidden not in (0, width):
        raise UserError(
            f"a captioner with model.projector_hidden={hidden} cannot be exported as LLaVA, whose "
            f"projector is as wide as its decoder, {width} here; train with "
            f"model.projector_hidden=0 or {width}; --format=mistral exports the decoder alone"
        )
    return config.vision


def llava_table() -> list[Row]:
    """Of a whole `Captioner` with a patch projector."""
    projector, ours = "multi_modal_projector.linear", "projector.linear"
    return [
        *vision_table("vision_tower.vision_model.", "vision."),
        *linear(f"{projector}_1", f"{ours}_1", bias="f -> f"),
        *linear(f"{projector}_2", f"{ours}_2", bias="f -> f"),
        *(Row(f"language_model.{r.hf}", f"lm.{r.path}", r.axes) for r in mistral_table()),
    ]


def config_to_hf(config: CaptionerConfig, image_id: int) -> dict[str, Any]:
    """The `config.json`; the vocabulary reaches to `image_id` at least."""
    text = config.lm.to_hf()
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
        "tie_word_embeddings": config.lm.tie_word_embeddings,
        "text_config": text,
        "vision_config": CLIPConfig(vision=check_expressible(config)).to_hf()["vision_config"],
    }


def save_llava(
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    preprocessor: Mapping[str, Any],
    directory: str | os.PathLike[str],
    *,
    max_tokens: int,
    prompt: str = "",
) -> int:
    """Writes model, tokenizer and processor; returns the id of `<image>`.

    Args:
      captioner: with a patch projector.
      tokenizer: of its decoder.
      preprocessor: the contents of its `preprocessor_config.json`.
      directory: is made if need be; files of the same names are replaced.
      max_tokens: of a caption, the default of `generate`.
      prompt: the text of `captioner.config.prompt`, for `load_llava`; transformers passes it over.

    Raises:
      UserError: LLaVA's architecture has no place for this captioner (`check_expressible`).
    """
    config, directory = captioner.config, Path(directory)
    vision = check_expressible(config)
    text, image_id = tokenizer_with_image(tokenizer)
    contents = {**config_to_hf(config, image_id), "har_jax": {"prompt": prompt}}
    save(_extended(captioner, image_id), directory, llava_table(), contents)
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
        "generation_config.json": generation_config(
            config, max_tokens, [image_id] if image_id >= config.lm.vocab_size else []
        ),
    }.items():
        hf_dir.write_json(directory / name, contents)
    return image_id


def read_llava_config(directory: str | os.PathLike[str]) -> tuple[CaptionerConfig, dict[str, Any]]:
    """The configuration of a LLaVA directory, and what we left in it for ourselves.

    A row that only `<image>` stands for is not counted in the vocabulary: no caption has the word.

    Raises:
      UserError: no LLaVA, or one whose decoder or projector is of another kind.
    """
    path = hf_dir.resolve(directory)
    hf = hf_dir.read_config(path, ["llava"])
    expected = {
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
    }
    for key, value in expected.items():
        if hf.get(key, value) != value:
            raise UserError(
                f"{path}: a LLaVA with {key}={hf[key]!r} is not supported; only {value!r} is"
            )
    text = hf.get("text_config") or {}
    if text.get("model_type") != "mistral":
        raise UserError(
            f"{path}: a LLaVA whose decoder is a {text.get('model_type')!r}; only those with a "
            "'mistral' are read"
        )
    lm = MistralConfig.from_hf(text)
    if image_id(path) == lm.vocab_size - 1:
        lm = dataclasses.replace(lm, vocab_size=lm.vocab_size - 1)
    config = CaptionerConfig(
        vision=VisionConfig.from_hf(hf.get("vision_config") or {}),
        lm=lm,
        vision_layer=hf.get("vision_feature_layer", -2),
    )
    return config, hf.get("har_jax") or {}


def image_id(directory: str | os.PathLike[str]) -> int:
    """The id of `<image>` in a LLaVA directory."""
    hf = hf_dir.read_config(hf_dir.resolve(directory), ["llava"])
    return hf.get("image_token_index", hf.get("image_token_id", 32_000))


def load_llava(
    directory: str | os.PathLike[str],
    config: CaptionerConfig,
    *,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    dtype: Any = jnp.float32,
) -> Captioner:
    """The captioner of a LLaVA directory, its parameters in `dtype` and sharded over `mesh`.

    Args:
      config: of `read_llava_config`; a row of `<image>` that it does not count is cut off.
    """
    path = hf_dir.resolve(directory)
    stored = MistralConfig.from_hf(hf_dir.read_config(path, ["llava"])["text_config"])
    lm = dataclasses.replace(config.lm, vocab_size=stored.vocab_size)
    ignore = r".*rotary_emb\.inv_freq|.*position_ids"  # buffers that old files carry
    if lm.tie_word_embeddings:
        ignore += r"|.*lm_head\.weight"
    whole = load(
        lambda: Captioner(dataclasses.replace(config, lm=lm), rngs=nnx.Rngs(0)),
        path,
        llava_table(),
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        ignore=ignore,
    )
    if lm == config.lm:
        return whole
    structure = structure_of(lambda: Captioner(config, rngs=nnx.Rngs(0)))
    shapes = structure.shapes
    out = None if mesh is None else structure.shardings(mesh, RULES if rules is None else rules)

    def cut(params: Params) -> Params:
        return {n: jax.lax.slice(x, [0] * x.ndim, shapes[n].shape) for n, x in params.items()}

    _, params = split(whole)
    return structure.merge(jax.jit(cut, out_shardings=out)(params))


def generation_config(
    config: CaptionerConfig, max_tokens: int, suppressed: Sequence[int] = ()
) -> dict[str, Any]:
    """`generate` then writes as our decoding does: greedily, finished rows filled with EOS."""
    more = {"suppress_tokens": list(suppressed)} if suppressed else {}
    return {
        "bos_token_id": config.lm.bos_token_id,
        "eos_token_id": config.lm.eos_token_id,
        "pad_token_id": config.lm.eos_token_id,
        "do_sample": False,
        "max_new_tokens": max_tokens,
        **more,
    }


def _extended(captioner: Captioner, image_id: int) -> Captioner:
    """The captioner with rows up to `image_id`, each the mean of those that were there."""
    structure, params = split(captioner)
    missing = image_id + 1 - captioner.config.lm.vocab_size
    if missing <= 0:
        return captioner

    def extend(name: str, axis: int) -> dict[str, jax.Array]:
        if name not in params:  # the output layer of a decoder that ties it to its embeddings
            return {}
        rows = np.asarray(params[name])
        mean = np.mean(rows, axis=axis, keepdims=True, dtype=np.float64).astype(rows.dtype)
        added = np.repeat(mean, missing, axis=axis)
        return {name: jnp.asarray(np.concatenate([rows, added], axis=axis))}

    longer = extend("lm.embed_tokens.embedding", 0) | extend("lm.lm_head.kernel", 1)
    return structure.merge({**params, **longer})


def tokenizer_with_image(tokenizer: CaptionTokenizer) -> tuple[str, int]:
    """`tokenizer.json` with `<image>`, and the id that it got.

    Its post-processor puts `<bos>` first, as the decoder was trained.
    """
    grown = Tokenizer.from_str(tokenizer.to_json())
    grown.add_special_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)])
    bos = tokenizer.token(tokenizer.bos_id)
    grown.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_id)]
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
    wanted = [tokenizer.bos_id, image_id, *tokenizer.encode(prompt)[:-1]]
    for between in ("", " "):
        if grown.encode(written := f"{IMAGE_TOKEN}{between}{prompt.strip()}").ids == wanted:
            return written
    raise UserError(
        f"the prompt {prompt!r} has other ids after {IMAGE_TOKEN} than alone, so the exported "
        "processor could not reproduce it; --format=mistral exports the decoder alone"
    )


def tokenizer_config(tokenizer: CaptionTokenizer) -> dict[str, Any]:
    bos, eos = tokenizer.token(tokenizer.bos_id), tokenizer.token(tokenizer.eos_id)
    return {
        # Tells transformers to take tokenizer.json as it is. Named by another class, such as
        # LlamaTokenizer, it rebuilds the pre-tokenizer that the class expects.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": eos,
        "padding_side": "left",
        "image_token": IMAGE_TOKEN,
        "extra_special_tokens": {"image_token": IMAGE_TOKEN},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
