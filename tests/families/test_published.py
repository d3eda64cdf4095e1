"""The `config.json`s of published decoders, from memory of their pages: each is read, and has as
many parameters as its makers say."""

import re

import pytest

from har_jax.errors import UserError
from har_jax.interchange.families.registry import DECODERS, read_decoder
from tests.families.drawn import draw_config

LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
COMMON = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
}
PUBLISHED = {
    "Mistral-7B-v0.1": (7_241_732_096, dict(model_type="mistral", sliding_window=4096)),
    "Mistral-7B-v0.3": (
        7_248_023_552,
        dict(model_type="mistral", vocab_size=32_768, sliding_window=None, rope_theta=1e6),
    ),
    "Mistral-Nemo-Base-2407": (
        12_247_782_400,
        dict(
            model_type="mistral", vocab_size=131_072, hidden_size=5120, head_dim=128,
            num_hidden_layers=40, sliding_window=None, rope_theta=1e6,
            max_position_embeddings=128_000,
        ),
    ),
    "Llama-2-7b-hf": (
        6_738_415_616,
        dict(model_type="llama", pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None),
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        dict(
            model_type="llama", vocab_size=128_256, hidden_size=2048, intermediate_size=8192,
            num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
            rope_scaling=LLAMA3, rope_theta=500_000.0, tie_word_embeddings=True,
            bos_token_id=128_000, eos_token_id=128_001, attention_bias=False, mlp_bias=False,
            max_position_embeddings=131_072, rms_norm_eps=1e-5,
        ),
    ),
    "TinyLlama_v1.1": (
        1_100_048_384,
        dict(
            model_type="llama", hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
            num_attention_heads=32, num_key_value_heads=4, rms_norm_eps=1e-5,
        ),
    ),
    "SmolLM2-360M": (
        361_821_120,
        dict(
            model_type="llama", vocab_size=49_152, hidden_size=960, intermediate_size=2560,
            num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5,
            is_llama_config=True, rope_interleaved=False, rope_theta=100_000, rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, max_position_embeddings=8192,
        ),
    ),
    "SmolLM3-3B": (
        3_075_098_624,
        dict(
            model_type="smollm3", rope_theta=5_000_000.0, use_sliding_window=False,
            sliding_window=None, no_rope_layer_interval=4, max_window_layers=28, pretraining_tp=2,
            layer_types=["full_attention"] * 36, max_position_embeddings=65_536,
        ),
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        dict(
            model_type="qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
            num_attention_heads=14, num_key_value_heads=2, max_window_layers=24,
            sliding_window=32_768, use_sliding_window=False, use_mrope=False, rope_theta=1e6,
            tie_word_embeddings=True, bos_token_id=151_643, eos_token_id=151_643,
        ),
    ),
    "Qwen3-0.6B-Base": (
        596_049_920,
        dict(
            model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128, rope_theta=1e6,
            tie_word_embeddings=True, attention_bias=False,
        ),
    ),
    "gpt2": (
        124_439_808,
        dict(
            model_type="gpt2", n_ctx=1024, resid_pdrop=0.1, summary_type="cls_index",
            summary_use_proj=True, activation_function="gelu_new",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    size, own = PUBLISHED[name]
    hf = {**COMMON, **own}
    if own["model_type"] == "gpt2":
        del hf["hidden_act"]
    config = DECODERS[hf["model_type"]].read(hf, "config.json")
    shapes = DECODERS[hf["model_type"]].structure(config, "bfloat16", scan_layers=True).shapes
    assert sum(like.size for like in shapes.values()) == size
    again = DECODERS[hf["model_type"]].read(DECODERS[hf["model_type"]].write(config), "")
    assert again == config


def line(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    (told,) = str(caught.value).splitlines()
    return told


def changed(family: str, **keys) -> dict:
    return {**draw_config(family, 0).to_dict(), **keys}


@pytest.mark.parametrize(
    ("family", "keys", "told"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' .only 'default'"),
        ("qwen2", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic' .only"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}},
            "'llama3' lack low_freq",
        ),
        (
            "llama",
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "not larger than low_freq",
        ),
        (
            "qwen3",
            {"layer_types": ["chunked_attention"] * 2},
            "layer_types has chunked_attention; only",
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "layer_types": ["full_attention"] * 9},
            "layer_types has 9 entries",
        ),
        ("smollm3", {"no_rope_layers": []}, "entries that say what each layer is, but . layer"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False .* give another GPT-2"),
        ("gpt2", {"n_embd": 7, "n_head": 2}, "n_embd 7 is not a multiple of n_head 2"),
        ("llama", {"head_dim": 5}, "turn 5 numbers of a head .* odd"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "its weights are quantized"),
        ("llama", {"logit_scale": 0.5}, "logit_scale=0.5 .a key without a meaning"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_that_is_another_computation(family, keys, told):
    found = line(lambda: DECODERS[family].read(changed(family, **keys), "config.json"))
    assert re.search(told, found), found


@pytest.mark.parametrize("model_type", ["gemma3_text", "mixtral", "phi", "olmo2", "no-such-kind"])
def test_an_unsupported_kind(model_type, tmp_path):
    """What differs, where that is known, and all that are supported."""
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    told = line(lambda: read_decoder(tmp_path))
    assert all(f"'{name}'" in told for name in DECODERS), told
    assert ("(" in told) == (model_type != "no-such-kind"), told
