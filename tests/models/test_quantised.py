"""Kernels in 8 and 4 bits: their numbers, their gradients, and that dense values do not stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from har_jax.models import lora
from har_jax.models.functional import split, structure_of
from har_jax.models.layers import Linear
from har_jax.models.quantised import NF4, dense_sizes, dequantise, layout_of, layouts, quantise
from tests.helpers import long, small_lm

SHAPES = {
    "in, out": ((64,), (48,)),
    "in, heads": ((256,), (4, 16)),
    "heads, out": ((4, 32), (24,)),
}


def linear(in_shape, out_shape, scheme=None):
    axes = (*(["embed", "heads"][: len(in_shape)]), *(["mlp", "head_dim"][: len(out_shape)]))
    made = Linear(in_shape, out_shape, axes, rngs=nnx.Rngs(0))
    if scheme:
        made.quantise(scheme)
    return made


def by_hand(values, scheme, axis, block):
    """One block after the other, one number after the other."""
    moved = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    out = np.empty_like(moved)
    for at in np.ndindex(*moved.shape[:-1]):
        for start in range(0, moved.shape[-1], block):
            part = moved[at][start : start + block]
            largest = np.abs(part).max() or 1.0
            for i, w in enumerate(part):
                if scheme == "int8":
                    out[at][start + i] = np.rint(w / largest * 127) * largest / 127
                else:
                    out[at][start + i] = (
                        min(NF4, key=lambda level: abs(level - w / largest)) * largest
                    )
    return np.moveaxis(out, -1, axis)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_a_kernel_is_what_the_definition_says(scheme, shapes):
    dense, small = linear(*shapes), linear(*shapes, scheme)
    layout = small.kernel.layout
    wanted = by_hand(dense.kernel.dense(), scheme, layout.axis, layout.block)
    np.testing.assert_allclose(small.kernel.dense(), wanted, atol=1e-6)
    assert small.kernel.shape == dense.kernel.shape


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(["int8", "nf4"]),
    st.integers(2, 40).map(lambda n: 4 * n),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_numpy_and_jax_make_the_same_codes(scheme, n_in, n_out, seed):
    """What a loader makes of a file is what a captioner makes of an array."""
    values = np.random.default_rng(seed).standard_normal((n_in, n_out)).astype(np.float32)
    layout = layout_of(scheme, values.shape, 1)
    codes, scales = quantise(values, layout)
    again = quantise(jnp.asarray(values), layout, jnp)
    assert np.mean(codes != np.asarray(again[0])) < 0.01  # ties of rounding
    np.testing.assert_allclose(scales, again[1], rtol=1e-6)
    restored = dequantise(jnp.asarray(codes), jnp.asarray(scales), layout, jnp.float32)
    steps = {"int8": 0.5 / 127, "nf4": 0.16}[scheme]  # half of the widest gap between levels
    room = np.repeat(scales, layout.block, axis=0) * (127 if scheme == "int8" else 1) * steps
    assert np.all(np.abs(np.asarray(restored) - values) <= room * 1.01 + 1e-7)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_products_and_gradients_are_those_of_the_dense_values(scheme, shapes):
    small = linear(*shapes, scheme)
    kernel = small.kernel.dense()
    x = jax.random.normal(jax.random.key(1), (3, 5, *shapes[0]))
    like = jax.random.normal(jax.random.key(2), (3, 5, *shapes[1]))

    def dense(x):
        return jnp.sum(jnp.tensordot(x, kernel, axes=len(shapes[0])) * like)

    got, gradient = jax.value_and_grad(lambda x: jnp.sum(small(x) * like))(x)
    wanted, expected = jax.value_and_grad(dense)(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_dense_values_neither_stay_nor_leave_the_loop(scheme):
    """Four layers of 1 MiB dense: kept for the backward pass, or made before a loop, they would be
    4 MiB of temporaries."""
    size, n_layers = 512, 4
    x = jnp.zeros((8, size))
    structure, one = split(linear((size,), (size,), scheme))
    stack = {name: jnp.stack([value] * n_layers) for name, value in one.items()}

    def backward(stack, x):
        def loss(x):
            for i in range(n_layers):
                x = jnp.tanh(structure.merge({n: v[i] for n, v in stack.items()})(x))
            return jnp.sum(x)

        return jax.grad(loss)(x)

    def loop(stack, x):
        def turn(i, x):
            for i in range(n_layers):
                x = jnp.tanh(structure.merge({n: v[i] for n, v in stack.items()})(x))
            return x

        return jax.lax.fori_loop(0, x.shape[0], turn, x)

    for function in (backward, loop):
        compiled = jax.jit(function).lower(stack, x).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 3.5 * size * size * 4


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "qwen3", *long(["llama", "qwen2", "smollm3"])])
def test_a_decoder_computes_with_the_dense_values(family, scan_layers):
    """Each of its linears in few bits, against a decoder that is given what these say."""
    config, scheme = small_lm(family), "nf4" if scan_layers else "int8"

    def few(block, rngs=None):
        for linear in lora.linears(block).values():
            linear.quantise(scheme)

    small = config.build(rngs=nnx.Rngs(0), adapt=few, scan_layers=scan_layers)
    apart = small.for_decoding()
    dense, params = split(config.build(rngs=nnx.Rngs(0)))
    few_params = split(apart)[1]
    for name, linear in lora.linears(apart).items():
        params[f"{name}.kernel"] = linear.kernel.dense()
    params |= {n: few_params[n] for n in params if n in few_params}
    tokens = jnp.asarray([[1, 5, 9, 3, 3, 7]])

    def run(structure):
        def logits(params):
            model = structure.merge(params)
            return model.logits(model.prefill(model.embed(tokens))[0])

        return jax.jit(logits)

    structure, own = split(small)
    wanted = np.asarray(run(dense)(params))
    np.testing.assert_allclose(run(structure)(own), wanted, atol=1e-5 * np.abs(wanted).max())


def test_shapes_alone_are_those_of_the_arrays():
    for scheme in ("int8", "nf4"):
        made = split(linear((256,), (4, 16), scheme))[1]
        drawn = structure_of(lambda scheme=scheme: linear((256,), (4, 16), scheme)).shapes
        assert {n: (x.shape, x.dtype) for n, x in drawn.items()} == {
            n: (x.shape, x.dtype) for n, x in made.items()
        }
        named = {f"q.{name}": x for name, x in drawn.items()}
        assert dense_sizes(named) == {"q.kernel": 256 * 64}
        assert layouts(named)["q.kernel"].shape == (256, 4, 16)
