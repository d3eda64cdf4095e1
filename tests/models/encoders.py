"""Drawn small encoders of each family, as transformers has them: the oracle of these tests."""

from __future__ import annotations

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def _tower(rng: np.random.Generator, **more) -> dict:
    heads = int(rng.integers(1, 4))
    return {
        "hidden_size": heads * int(rng.integers(3, 7)),
        "intermediate_size": int(rng.integers(5, 20)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "hidden_act": str(rng.choice(["gelu_pytorch_tanh", "gelu"])),
        "layer_norm_eps": float(rng.choice([1e-6, 1e-3])),
        **more,
    }


def _image(rng: np.random.Generator) -> dict:
    """Images that patches do not fill, among others."""
    patch = int(rng.integers(2, 6))
    return {
        "patch_size": patch,
        "image_size": patch * int(rng.integers(1, 4)) + int(rng.integers(0, patch)),
    }


def draw_siglip(rng: np.random.Generator, *, head: bool | None = None) -> dict:
    """A `config.json`; without a head the towers compare nothing."""
    head = bool(rng.random() < 0.8) if head is None else head
    vision = _tower(rng, **_image(rng), vision_use_head=head)
    text = _tower(
        rng,
        vocab_size=int(rng.integers(10, 40)),
        max_position_embeddings=int(rng.integers(3, 12)),
        projection_size=vision["hidden_size"],
    )
    return {"vision_config": vision, "text_config": text}


def draw_dinov2(rng: np.random.Generator, registers: bool) -> dict:
    """A `config.json`, and as `reads` the side of the images, which may be another one."""
    tower = _tower(rng)
    del tower["intermediate_size"]
    patch = _image(rng)
    size = patch["patch_size"]
    other = size * int(rng.integers(1, 6)) + int(rng.integers(0, size))
    more = {"num_register_tokens": int(rng.integers(1, 5))} if registers else {}
    return {
        **tower,
        **patch,
        **more,
        "mlp_ratio": int(rng.integers(1, 5)),
        "use_swiglu_ffn": bool(rng.random() < 0.4),
        "layerscale_value": float(rng.choice([1.0, 1e-2])),
        "reads": int(rng.choice([patch["image_size"], other])),
    }


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """With all parameters away from their near-zero beginnings."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def torch_siglip(config: dict, seed: int) -> transformers.SiglipModel:
    torch.manual_seed(seed)
    return shaken(transformers.SiglipModel(transformers.SiglipConfig(**config)), seed)


def torch_dinov2(config: dict, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = {key: value for key, value in config.items() if key != "reads"}
    if "num_register_tokens" in config:
        made = transformers.Dinov2WithRegistersConfig(**config)
        return shaken(transformers.Dinov2WithRegistersModel(made), seed)
    return shaken(transformers.Dinov2Model(transformers.Dinov2Config(**config)), seed)


def pixels_of(side: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, side, side, 3)).astype(np.float32)


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(0, 3, 1, 2)
