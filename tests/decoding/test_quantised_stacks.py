"""Decoding with a quantised decoder whose layers lie in one stack: its codes are read there, and no
second copy of them exists."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.weights import for_decoding
from har_jax.models import lora
from har_jax.models.captioner import Captioner
from har_jax.models.functional import split
from har_jax.models.quantised import QuantisedKernel
from har_jax.sessions.collectives import collectives, in_decode_loop
from har_jax.sharding import batch_sharding, make_mesh
from tests.helpers import LM, images, small_config

LAYERS, T = 3, 5
WIDE = dataclasses.replace(
    LM, num_hidden_layers=LAYERS, hidden_size=128, intermediate_size=256, head_dim=32
)


def captioner_of(scheme, **changes):
    def few(block, rngs=None):
        for linear in lora.linears(block).values():
            linear.quantise(scheme)

    config = small_config(lm=WIDE, scan_layers=True, **changes)
    graphdef, state = nnx.split(Captioner(config, rngs=nnx.Rngs(0), adapt=few))
    floating = lambda x: x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    state = jax.tree.map(lambda x: 4 * x if floating(x) else x, state)
    return nnx.merge(graphdef, state)


def taken_apart(captioner):
    """What `for_decoding` made of stacks before: a slice of the codes for each layer."""
    for layer in captioner.lm.layers:
        for linear in lora.linears(layer).values():
            kernel = linear.kernel
            assert isinstance(kernel, QuantisedKernel) and kernel.layer is not None
            parts = (x[...][kernel.layer] for x in (kernel.codes, kernel.scales))
            linear.kernel = QuantisedKernel(kernel.layout, kernel.logical_axes[1:], *parts)
    return captioner


def writer(structure, ready=for_decoding):
    def write(params, pixels):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(pixels)))
        return decode(ready(captioner), cache, DecodePlan(T, samples=1), jax.random.key(1)).together

    return jax.jit(write)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_the_captions_are_those_of_layers_apart_and_no_codes_are_copied(scheme):
    structure, params = split(captioner_of(scheme))
    apart = writer(structure, lambda captioner: taken_apart(for_decoding(captioner)))
    read = writer(structure)
    expected, got = apart(params, images(4)), read(params, images(4))
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.logp, expected.logp)
    assert len(np.unique(got.tokens)) > 3

    def needed(jitted):
        return jitted.lower(params, images(4)).compile().memory_analysis().temp_size_in_bytes

    codes = sum(x.nbytes for name, x in params.items() if name.endswith((".codes", ".scales")))
    assert needed(read) < needed(apart) - codes / 2


@pytest.mark.parametrize("how", ["gathered", "in_place"])
def test_on_a_mesh_no_codes_travel_in_the_loop(how):
    structure, params = split(captioner_of("int8", decode_weights=how))
    expected = writer(structure)(params, images(8))
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, structure.shardings(mesh))
        spread = jax.device_put(images(8), batch_sharding(mesh))
        write = writer(structure)
        got = write(placed, spread)
        text = write.lower(placed, spread).compile().as_text()
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_allclose(got.logp, expected.logp, atol=1e-4)
    inside = in_decode_loop(collectives(text))
    assert inside  # products split over tensor are summed
    for found in inside:
        assert found.result.startswith(("f32", "bf16", "pred", "s32")), found
        size = [int(n) for n in found.result.partition("[")[2].rstrip("]").split(",") if n]
        assert np.prod(size) < 128 * 2 * 32, found  # the smallest matrix of codes
