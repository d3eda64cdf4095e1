"""What the keys mean that transformers writes into every family's `config.json`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from har_jax.foreign import Keys

BOOKKEEPING = frozenset({
    "model_type", "architectures", "transformers_version", "torch_dtype", "dtype",
    "attn_implementation", "tokenizer_class", "name_or_path", "num_labels", "id2label",
    "label2id", "problem_type", "finetuning_task", "task_specific_params", "custom_pipelines",
    "license", "unsloth_version", "unsloth_fixed", "is_llama_config", "transformers.js_config",
})  # fmt: skip
"""Where a model comes from, and what others use it for."""

RUNNING = frozenset({
    "use_cache", "output_attentions", "output_hidden_states", "output_scores", "return_dict",
    "return_dict_in_generate", "torchscript", "use_bfloat16", "gradient_checkpointing",
    "chunk_size_feed_forward", "tf_legacy_loss", "use_flash_attn", "use_flash_attention_2",
    "pretraining_tp",
})  # fmt: skip
"""How transformers runs it, to the same numbers."""

TRAINING = frozenset({
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout",
    "dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout",
    "classifier_dropout", "layerdrop", "ignore_index",
})  # fmt: skip
"""How it was born and trained; nothing is dropped here."""

GENERATION = frozenset({
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
    "remove_invalid_values", "exponential_decay_length_penalty", "prefix", "bos_token_id",
    "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
})  # fmt: skip
"""How transformers 4 would have written texts with it; captions are written as a run says."""

HARMLESS = BOOKKEEPING | RUNNING | TRAINING | GENERATION
OF_TOWERS = HARMLESS | {"tie_word_embeddings"}
"""A tower has no output layer."""

FIXED = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "is_causal": (True,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "quantization_config": (),
    "auto_map": (),
}
"""Of what a transformer may have, and none here has."""

WHY = {
    "quantization_config": "its weights are quantized",
    "quantization": "its weights are quantized",
    "compression_config": "its weights are quantized",
    "auto_map": "it needs Python code that comes along",
    "add_cross_attention": "only decoders that read nothing else are",
    "rope_scaling": "its positions are scaled",
}


def keys_of(
    config: type,
    *,
    but: Iterable[str] = (),
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    harmless: Iterable[str] = (),
) -> Keys:
    """Those of a tower: the fields of its configuration, `but` ours; others have one allowed value,
    or say nothing of what is computed."""
    hints = typing.get_type_hints(config, include_extras=True)
    read = [field.name for field in dataclasses.fields(config) if field.init]
    fixed = {**FIXED, **(fixed or {})}
    return Keys(
        used={key: hints[key] for key in read if key not in set(but)},
        fixed=fixed,
        harmless=(OF_TOWERS | set(harmless)) - set(fixed),
        why=WHY,
    )


def read_present(keys: Keys, hf: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a `config.json` under our names. A null stands for the value that is usual.

    Raises:
      UserError: a number out of its range, or a key that changes, or may change, what is computed.
    """
    return keys.read({key: value for key, value in hf.items() if value is not None}, where)
