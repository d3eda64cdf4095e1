"""SmolLM3 from and to Hugging Face directories: some layers have no positions (NoPE)."""

from __future__ import annotations

from typing import Any

from har_jax.interchange.families.causal_lm import (
    LAYER_TYPES,
    Found,
    causal_lm,
    sliding,
    spelt_sliding,
)
from har_jax.interchange.families.llama import BIASES, biases, spelt_biases
from har_jax.models.decoders.transformer import TransformerConfig
from har_jax.models.sizes import Layers


def _options(found: Found, where: str) -> dict[str, Any]:
    n, every = found["num_hidden_layers"], found["no_rope_layer_interval"]
    turns = found["no_rope_layers"]  # 1 where a layer does turn, whatever the name says
    turns = [(i + 1) % every != 0 for i in range(n)] if turns is None else turns[:n]
    if found["layer_types"] is None:  # a window, where there is one, is of layers that do not turn
        use = found["use_sliding_window"] and found["sliding_window"] is not None
        kinds = ["sliding_attention" if use and not t else "full_attention" for t in turns]
        found = {**found, "layer_types": kinds}
    return {
        "rotary_layers": tuple(map(bool, turns)),
        **biases(found, where),
        **sliding(found, where),
    }


def _spelt(config: TransformerConfig) -> dict[str, Any]:
    windows = spelt_sliding(config)
    del windows["max_window_layers"]
    turns = [int(bool(kind.turns)) for kind in config.kinds]
    # transformers' own padding row is 128,004, which a smaller vocabulary does not have.
    return {"no_rope_layers": turns, "pad_token_id": None, **spelt_biases(config), **windows}


SMOLLM3 = causal_lm(
    "smollm3",
    "SmolLM3ForCausalLM",
    defaults=dict(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_theta=2_000_000.0,
        tie_word_embeddings=True,
        bos_token_id=128_000,
        eos_token_id=128_001,
        no_rope_layer_interval=4,
        use_sliding_window=False,
    ),
    used={
        **{key: kind for key, kind in LAYER_TYPES.items() if key != "max_window_layers"},
        **BIASES,
        "no_rope_layers": list[int] | None,
        "no_rope_layer_interval": Layers,
    },
    options=_options,
    spelt=_spelt,
)
