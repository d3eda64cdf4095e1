"""bfloat16 against transformers' PyTorch models: no further from float32 than theirs are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from har_jax.interchange.families.clip import load_clip
from har_jax.interchange.families.gpt2 import load_gpt2
from har_jax.interchange.families.mistral import load_mistral
from har_jax.models.functional import split

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

MARGIN = 1.25
"""Both round at about the same places, but sums are made in another order."""

IDS = np.random.default_rng(0).integers(3, 90, (4, 24))
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}


def mistral():
    config = transformers.MistralConfig(
        **SIZES, vocab_size=90, intermediate_size=96, num_key_value_heads=2, sliding_window=9,
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.MistralForCausalLM(config), load_mistral, decoder


def gpt2():
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=90, n_positions=32, attn_implementation="eager"
    )
    return transformers.GPT2LMHeadModel(config), load_gpt2, decoder


def decoder(model, dtype):
    """Theirs or ours: logits of the ids."""
    if isinstance(model, torch.nn.Module):
        return model(input_ids=torch.tensor(IDS)).logits
    hidden, _ = model.prefill(model.embed(jnp.asarray(IDS), dtype))
    return model.logits(hidden)


def clip():
    tower = {**SIZES, "intermediate_size": 96, "attn_implementation": "eager"}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 90, "max_position_embeddings": 24, "eos_token_id": 2},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    return transformers.CLIPModel(config), load_clip, vision_tower


def vision_tower(model, dtype):
    """Theirs or ours: patch tokens of the last layer but one."""
    pixels = np.random.default_rng(1).standard_normal((4, 32, 32, 3)).astype(np.float32)
    if isinstance(model, torch.nn.Module):
        given = torch.tensor(pixels).permute(0, 3, 1, 2).to(model.dtype)
        out = model.vision_model(given, output_hidden_states=True)
        return out.hidden_states[-2][:, 1:]
    return model.vision.hidden(jnp.asarray(pixels, dtype), -2)[:, 1:]


@pytest.mark.parametrize("family", [mistral, gpt2, clip])
def test_the_error_of_bfloat16_is_that_of_torch(family, tmp_path):
    torch.manual_seed(0)
    theirs, load, output = family()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        exact = output(theirs, None).float().numpy()
        coarse = output(theirs.to(torch.bfloat16), None).float().numpy()

    def computed(dtype):
        structure, params = split(load(tmp_path, dtype=dtype))
        run = jax.jit(lambda params: output(structure.merge(params), dtype))
        return np.asarray(run(params), np.float32)

    def error(values):
        return np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2))

    assert error(computed(jnp.float32)) < 1e-5
    assert 1e-3 < error(coarse) < 0.1
    assert error(computed(jnp.bfloat16)) <= MARGIN * error(coarse)
