"""Decoding on meshes that split the vocabulary, and with weights left where training has them: the
same captions, and no weight or logits travel inside the loop."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.beam import beam_search
from har_jax.decoding.sampling import draw, likeliest
from har_jax.decoding.weights import for_decoding
from har_jax.models.functional import split
from har_jax.sessions.collectives import collectives, in_decode_loop
from har_jax.sharding import batch_sharding, make_mesh
from tests.helpers import LM, images, long, small_captioner, small_lm

T, V = 5, 4096
PLAN = DecodePlan(T, greedy=True, samples=1)
WIDE = dataclasses.replace(LM, vocab_size=V, hidden_size=128, intermediate_size=256, head_dim=32)
SMALLEST = 128 * 2 * 32
"""Numbers of its smallest matrix, the keys' kernel: more than any activation of a batch."""


def writer(structure):
    def write(params, pixels):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(pixels)))
        rollout = decode(for_decoding(captioner), cache, PLAN, jax.random.key(1))
        return rollout.together

    return write


FAMILY = "gpt2", "qwen3", *long(["llama", "qwen2", "smollm3"])


@pytest.mark.parametrize("family", FAMILY)
def test_the_same_captions_of_every_family(family):
    """As the next test has them, whatever the decoder's parts: one kernel of q, k and v, learned
    positions, biases, norms of heads."""
    structure, params = split(small_captioner(lm=small_lm(family), scan_layers=True, scale=4.0))
    expected = jax.jit(writer(structure))(params, images(8))
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, structure.shardings(mesh))
        spread = jax.device_put(images(8), batch_sharding(mesh))
        got = jax.jit(writer(structure))(placed, spread)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_allclose(got.logp, expected.logp, atol=1e-4)


CASES = list(itertools.product([(2, 2, 2), (1, 2, 4), (1, 8, 1)], ["gathered", "in_place"], [0, 1]))
FEW = [((2, 2, 2), "gathered", 0), ((1, 2, 4), "in_place", 1)]


@pytest.mark.parametrize("case", [*FEW, *long(c for c in CASES if c not in FEW)], ids=str)
def test_the_same_captions_and_nothing_large_travels(case):
    shape, how, tied = case
    lm = dataclasses.replace(WIDE, tie_word_embeddings=bool(tied))
    changes = {"lm": lm, "scan_layers": True, "decode_weights": how}
    structure, params = split(small_captioner(scale=2.0, **changes))
    pixels = images(8)
    expected = jax.jit(writer(structure))(params, pixels)
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, structure.shardings(mesh))
        jitted = jax.jit(writer(structure))
        spread = jax.device_put(pixels, batch_sharding(mesh))
        got = jitted(placed, spread)
        text = jitted.lower(placed, spread).compile().as_text()
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_allclose(got.logp, expected.logp, atol=1e-4)
    inside = in_decode_loop(collectives(text))
    assert inside or (shape[2] == 1 and how == "gathered")
    for found in inside:
        size = [int(n) for n in found.result.partition("[")[2].rstrip("]").split(",") if n]
        assert np.prod(size) < SMALLEST, found


@pytest.mark.parametrize("tensor", [2, 4])
def test_draws_from_a_split_vocabulary(tensor):
    """As by inversion of the whole distribution, and argmax takes the first of equals."""
    v, n = 64, 4096
    logits = jax.random.normal(jax.random.key(0), (8, v)) * 2
    uniform = jax.random.uniform(jax.random.key(1), (n, 8))
    mesh = make_mesh(1, 8 // tensor, tensor)
    with jax.set_mesh(mesh):
        drawn = jax.jit(jax.vmap(draw, in_axes=(None, 0)))(logits, uniform)
        first = jax.jit(likeliest)(logits.at[:, 40].set(9.0).at[:, 7].set(9.0))
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    for row in range(8):
        wanted = np.searchsorted(np.cumsum(p[row]), np.asarray(uniform[:, row], np.float64))
        assert np.mean(wanted == np.asarray(drawn[:, row])) > 0.998  # rounding at the borders
    assert set(np.asarray(first).tolist()) == {7}


@pytest.mark.parametrize("how", ["gathered", "in_place"])
def test_beams_on_a_split_vocabulary(how):
    """Logits come together, weights do not."""
    structure, params = split(small_captioner(scale=2.0, lm=WIDE, decode_weights=how))

    def write(params, pixels):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(pixels)))
        return beam_search(for_decoding(captioner), cache, beams=2, max_tokens=T)

    expected = jax.jit(write)(params, images(8))
    mesh = make_mesh(1, 2, 4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, structure.shardings(mesh))
        spread = jax.device_put(images(8), batch_sharding(mesh))
        compiled = jax.jit(write).lower(placed, spread).compile()
        got = compiled(placed, spread)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    for found in in_decode_loop(collectives(compiled.as_text())):
        size = [int(n) for n in found.result.partition("[")[2].rstrip("]").split(",") if n]
        logits = size[-1:] in ([V], [2 * V]) and WIDE.hidden_size not in size
        assert logits or np.prod(size) < SMALLEST, found
