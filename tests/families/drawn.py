"""Decoders of every family, of drawn shapes, as transformers makes them: the oracles of the tests
here."""

from collections.abc import Callable

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Draw = Callable[[np.random.Generator, dict], dict]


def chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _common(rng: np.random.Generator) -> dict:
    """Odd sizes, one kv head to all, tied or not."""
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * int(rng.integers(1, 4))
    return {
        "vocab_size": int(rng.integers(11, 70)),
        "hidden_size": heads * 2 * int(rng.integers(1, 5)),
        "intermediate_size": int(rng.integers(5, 50)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": str(rng.choice(["silu", "gelu", "gelu_pytorch_tanh"])),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "max_position_embeddings": 128,
        "tie_word_embeddings": chance(rng, 0.4),
        "rope_parameters": _rope(rng, "default"),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _rope(rng: np.random.Generator, kind: str) -> dict:
    theta = float(rng.choice([100.0, 10_000.0, 1_000_000.0]))
    rope = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        rope["factor"] = float(rng.choice([2.0, 3.5, 8.0]))
    if kind == "llama3":
        low = float(rng.choice([0.5, 1.0, 2.0]))
        rope |= {"low_freq_factor": low, "high_freq_factor": low * float(rng.choice([1.5, 4.0]))}
        rope["original_max_position_embeddings"] = int(rng.choice([8, 32, 64]))
    return rope


def _scaled(rng: np.random.Generator) -> dict:
    return {"rope_parameters": _rope(rng, str(rng.choice(["default", "linear", "llama3"])))}


def _head(rng: np.random.Generator) -> dict:
    return {"head_dim": None if chance(rng, 0.3) else 2 * int(rng.integers(1, 9))}


def _windows(rng: np.random.Generator, config: dict) -> dict:
    """Qwen's: turned on or not, from a layer on, or layer by layer."""
    n, use = config["num_hidden_layers"], chance(rng, 0.6)
    found = {"use_sliding_window": use, "sliding_window": int(rng.integers(1, 9))}
    found["max_window_layers"] = int(rng.integers(0, n + 1))
    if use and chance(rng, 0.4):
        kinds = ["full_attention", "sliding_attention"]
        found["layer_types"] = [str(rng.choice(kinds)) for _ in range(n)]
    return found


def _mistral(rng: np.random.Generator, config: dict) -> dict:
    window = None if chance(rng, 0.4) else int(rng.integers(1, 9))
    return {"sliding_window": window, **_head(rng), **_scaled(rng)}


def _llama(rng: np.random.Generator, config: dict) -> dict:
    biases = {key: chance(rng, 0.4) for key in ("attention_bias", "mlp_bias")}
    return {**biases, **_head(rng), **_scaled(rng)}


def _qwen2(rng: np.random.Generator, config: dict) -> dict:
    return {**_windows(rng, config), **_scaled(rng)}


def _qwen3(rng: np.random.Generator, config: dict) -> dict:
    own = {"head_dim": 2 * int(rng.integers(1, 9)), "attention_bias": chance(rng, 0.4)}
    return {**own, **_windows(rng, config), **_scaled(rng)}


def _smollm3(rng: np.random.Generator, config: dict) -> dict:
    n, use = config["num_hidden_layers"], chance(rng, 0.4)
    found = {key: chance(rng, 0.4) for key in ("attention_bias", "mlp_bias")}
    found |= {"use_sliding_window": use, "sliding_window": int(rng.integers(1, 9)) if use else None}
    if chance(rng, 0.5):
        found["no_rope_layers"] = [int(rng.integers(0, 2)) for _ in range(n)]
    else:
        found["no_rope_layer_interval"] = int(rng.integers(1, 4))
    return {**found, **_scaled(rng)}


def _gpt2(rng: np.random.Generator, config: dict) -> dict:
    heads = int(rng.integers(1, 5))
    return {
        "n_embd": heads * int(rng.integers(1, 9)),
        "n_head": heads,
        "n_layer": config["num_hidden_layers"],
        "n_positions": int(rng.integers(64, 100)),
        "n_inner": None if chance(rng, 0.5) else config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "activation_function": str(rng.choice(["gelu_new", "gelu", "relu"])),
        "layer_norm_epsilon": config["rms_norm_eps"],
        "tie_word_embeddings": chance(rng, 0.7),
        "bos_token_id": None,
        "eos_token_id": None,
    }


FAMILIES: dict[str, tuple[type, type, Draw]] = {
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, _mistral),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, _llama),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM, _smollm3),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, _qwen2),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, _qwen3),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, _gpt2),
}


def draw_config(family: str, seed: int, **changes):
    """transformers' configuration of a drawn decoder."""
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    kind, _, own = FAMILIES[family]
    common = _common(rng)
    values = own(rng, common) if family == "gpt2" else {**common, **own(rng, common)}
    return kind(**{**values, "attn_implementation": "eager", **changes})


def random_torch(config, seed: int) -> torch.nn.Module:
    """transformers' model with weights, norms and biases that are all far from 0 and 1."""
    torch.manual_seed(seed)
    return roughened(FAMILIES[config.model_type][1](config))


def roughened(model: torch.nn.Module, by: float = 0.2) -> torch.nn.Module:
    """With noise on every parameter: biases are born as zeros, norms as ones."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * by)
    return model.eval()
