"""What the keys mean that transformers writes into every family's `config.json`."""

from __future__ import annotations

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
