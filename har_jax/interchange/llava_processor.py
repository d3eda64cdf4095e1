"""What `<image>` asks of a LLaVA directory (a token, rows of the weights), its text, how it
writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, processors

from har_jax.distributed import gather
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.models.captioner import CaptionerConfig
from har_jax.text.tokenizer import CaptionTokenizer

IMAGE_TOKEN = "<image>"


def generation_config(
    config: CaptionerConfig, max_tokens: int, image_id: int | None = None
) -> dict[str, Any]:
    """`generate` then writes as our decoding does: greedily, finished rows filled with EOS, and no
    row of the vocabulary that no token has. Those rows have no share of the probability either, by
    which beams are compared: transformers suppresses them behind the softmax, hence
    `renormalize_logits`."""
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
        **({"renormalize_logits": True} if suppressed else {}),
    }


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


def drop_added_token(directory: Path, number: int) -> None:
    """Takes from a tokenizer's files a token that was added to its vocabulary, as `<image>` is in a
    LLaVA: of the decoder alone it is none."""
    file = directory / "tokenizer.json"
    found = hf_dir.read_json(file) if file.exists() else {}
    added = found.get("added_tokens", [])
    names = {token["content"] for token in added if token["id"] == number}
    vocab = found.get("model", {}).get("vocab", ())  # of BPE a dictionary, of Unigram a list
    if not names or number in (vocab.values() if isinstance(vocab, dict) else range(len(vocab))):
        return
    found["added_tokens"] = [token for token in added if token["id"] != number]
    hf_dir.write_json(file, found)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (file := directory / name).exists():
            hf_dir.write_json(file, _without(hf_dir.read_json(file), names))


def _without(value: Any, tokens: set[str]) -> Any:
    """JSON without what names one of these tokens."""

    def names(key: str, inside: Any) -> bool:
        content = inside.get("content") if isinstance(inside, dict) else inside
        return key in tokens or (isinstance(content, str) and content in tokens)

    if isinstance(value, list):
        return [_without(item, tokens) for item in value if not names("", item)]
    if isinstance(value, dict):
        return {k: _without(v, tokens) for k, v in value.items() if not names(k, v)}
    return value


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


def with_image_row(
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
