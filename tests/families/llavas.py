"""LLaVA directories that transformers wrote, of drawn decoders and towers."""

import json

import numpy as np
import torch
import transformers
from PIL import Image

from har_jax.interchange import llava_processor
from har_jax.text.tokenizer import load_tokenizer, train_tokenizer
from tests.families.drawn import draw_config, roughened
from tests.models.encoders import draw_dinov2, draw_siglip

TEXTS = ["a red star above a blue moon", "two green hearts beside a cross", "a small yellow ring"]
MAX_TOKENS = 9
PROCESSORS = {  # as the published directories of each kind of tower say
    "clip": {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "do_center_crop": False},
    "dinov2": {"image_processor_type": "BitImageProcessor", "do_center_crop": True},
}


def draw_tower(kind: str, rng: np.random.Generator):
    if kind == "siglip":
        # Without its head, transformers 5.24 gives LLaVA no hidden states of it.
        return transformers.SiglipVisionConfig(**draw_siglip(rng, head=True)["vision_config"])
    if kind == "dinov2":
        drawn = draw_dinov2(rng, registers=bool(rng.integers(0, 2)))
        del drawn["reads"]
        with_registers = "num_register_tokens" in drawn
        make = transformers.Dinov2WithRegistersConfig if with_registers else None
        return (make or transformers.Dinov2Config)(**drawn)
    heads, patch = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    return transformers.CLIPVisionConfig(
        hidden_size=heads * int(rng.integers(3, 7)),
        intermediate_size=int(rng.integers(5, 20)),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads,
        patch_size=patch,
        image_size=patch * int(rng.integers(1, 4)) + int(rng.integers(0, patch)),
    )


def write_llava(directory, family: str, kind: str, seed: int, change=None):
    """A random LLaVA, saved by transformers; whether rows of the vocabulary have no token, and
    which layer and tokens of the tower are read, are drawn too. `change(model, tokenizer)` comes
    before it is saved."""
    rng = np.random.default_rng([seed, 7])
    tower = draw_tower(kind, rng)
    tokenizer = train_tokenizer(TEXTS, 270, directory)
    image_id = tokenizer.vocab_size
    text = draw_config(
        family,
        seed,
        vocab_size=image_id + 1 + int(rng.integers(0, 3)),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        **({"tie_word_embeddings": False} if family == "gpt2" else {}),
    )
    n_layers = tower.num_hidden_layers
    # Of one patch, and no class token before it, the default leaves nothing.
    alone = kind == "siglip" and tower.image_size < 2 * tower.patch_size
    strategies = ["full"] if alone else ["default", "full"]
    config = transformers.LlavaConfig(
        text_config=text.to_dict(),
        vision_config=tower.to_dict(),
        image_token_index=image_id,
        # transformers 5.24 takes layer 0 for none at all; -n - 1 is the same one.
        vision_feature_layer=int(rng.choice([*range(-n_layers - 1, 0), *range(1, n_layers + 1)])),
        vision_feature_select_strategy=str(rng.choice(strategies)),
    )
    torch.manual_seed(seed)
    model = roughened(transformers.LlavaForConditionalGeneration(config))
    for linear in (
        model.model.multi_modal_projector.linear_1,
        model.model.multi_modal_projector.linear_2,
    ):
        linear.weight.data.mul_(5.0)  # so that captions depend on the image
    model.generation_config.eos_token_id = tokenizer.eos_id
    model.generation_config.pad_token_id = tokenizer.eos_id
    model.generation_config.suppress_tokens = list(range(image_id, text.vocab_size))
    model.generation_config.max_new_tokens = MAX_TOKENS
    if change is not None:
        change(model, tokenizer)
    model.save_pretrained(directory)
    grown, _ = llava_processor.tokenizer_with_image(load_tokenizer(directory))
    (directory / "tokenizer.json").write_text(grown)
    side = tower.image_size
    pixels = {
        "size": {"height": side, "width": side},
        "crop_size": {"height": side, "width": side},
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.3],
        **PROCESSORS[kind],
    }
    if kind != "siglip":
        pixels["size"] = {"shortest_edge": side}
    (directory / "preprocessor_config.json").write_text(json.dumps(pixels))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(llava_processor.tokenizer_config(tokenizer))
    )
    n_extra = {"siglip": 0, "clip": 1}.get(kind, 1 + getattr(tower, "num_register_tokens", 0))
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": n_extra,
    }
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return model


def images(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (23, 31, 3), np.uint8)) for _ in range(n)]
