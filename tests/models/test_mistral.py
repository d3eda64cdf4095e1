"""The decoder against transformers' PyTorch model, and its ways of running against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from har_jax.interchange.families.mistral import MISTRAL
from har_jax.models.decoders import Mistral, MistralConfig
from tests.helpers import jitted

CONFIG = MistralConfig(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=None,
)


@pytest.fixture(params=[None, 5], ids=["full", "window5"])
def model(request):
    import dataclasses

    return Mistral(dataclasses.replace(CONFIG, sliding_window=request.param), rngs=nnx.Rngs(0))


def test_shared_prefix_equals_whole_sequences(model):
    """`prefill` + `extend` of R captions equals a full causal pass over each prefix + caption."""
    b, r, p, t = 2, 3, 4, 6
    tokens = jax.random.randint(jax.random.key(1), (b, r, t), 0, CONFIG.vocab_size)
    x_bpd = jax.random.normal(jax.random.key(2), (b, p, CONFIG.hidden_size))

    def run(model):
        _, cache = model.prefill(x_bpd)
        wholes = [
            model.prefill(jnp.concatenate([x_bpd, model.embed(tokens[:, i])], axis=1))[0]
            for i in range(r)
        ]
        return model.extend(model.embed(tokens), cache), wholes

    hidden, wholes = jitted(model, run)
    for i, whole in enumerate(wholes):
        np.testing.assert_allclose(hidden[:, i], whole[:, p:], atol=2e-5)


def test_steps_equal_extend(model):
    b, r, p, t = 2, 3, 4, 6
    tokens = jax.random.randint(jax.random.key(1), (b, r, t), 0, CONFIG.vocab_size)
    x_bpd = jax.random.normal(jax.random.key(2), (b, p, CONFIG.hidden_size))

    def begin(model):
        _, cache = model.prefill(x_bpd)
        return cache, model.extend(model.embed(tokens), cache)

    cache, hidden = jitted(model, begin)
    written = model.empty_cache(b, r, t)
    step = jax.jit(lambda x, w, i: model.step(x, cache, w, i))
    for i in range(t):
        h, written = step(model.embed(tokens[:, :, i]), written, jnp.int32(i))
        np.testing.assert_allclose(h, hidden[:, :, i], atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_equals_transformers(tied, window):
    import torch
    from transformers import MistralConfig as HFConfig
    from transformers import MistralForCausalLM

    hf_config = HFConfig(
        **{k: getattr(CONFIG, k) for k in ("vocab_size", "hidden_size", "intermediate_size")},
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=window,
        tie_word_embeddings=tied,
        rope_theta=500_000.0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    reference = MistralForCausalLM(hf_config).eval()
    config = MISTRAL.read(hf_config.to_dict())
    assert config.rope_theta == 500_000.0 and config.sliding_window == window
    model = Mistral(config, rngs=nnx.Rngs(0))
    tensors = {k: jnp.asarray(v.detach().numpy()) for k, v in reference.state_dict().items()}
    d, h = config.hidden_size, config.head_dim
    model.embed_tokens.embedding[...] = tensors["model.embed_tokens.weight"]
    model.norm.scale[...] = tensors["model.norm.weight"]
    if not tied:
        model.lm_head.kernel[...] = tensors["lm_head.weight"].T
    for i, layer in enumerate(model.layers):
        w = lambda name, i=i: tensors[f"model.layers.{i}.{name}.weight"]  # noqa: E731
        layer.attn_norm.scale[...] = w("input_layernorm")
        layer.mlp_norm.scale[...] = w("post_attention_layernorm")
        for name in ("q", "k", "v"):
            getattr(layer.attn, name).kernel[...] = w(f"self_attn.{name}_proj").T.reshape(d, -1, h)
        layer.attn.o.kernel[...] = w("self_attn.o_proj").T.reshape(-1, h, d)
        for name in ("gate", "up", "down"):
            getattr(layer.mlp, name).kernel[...] = w(f"mlp.{name}_proj").T
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 9))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    logits = jitted(model, lambda m: m.logits(m.prefill(m.embed(jnp.asarray(tokens)))[0]))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
