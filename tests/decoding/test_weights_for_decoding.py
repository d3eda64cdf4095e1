"""The weights of a decode loop: cast and placed once, before the loop, and the same captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.weights import for_decoding
from har_jax.models.captioner import Captioner
from har_jax.models.functional import split
from har_jax.sharding import batch_sharding, make_mesh
from tests.helpers import images, small_captioner

T = 6


def writer(structure):
    def write(params, pixels):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(pixels)))
        return decode(for_decoding(captioner), cache, DecodePlan(T)).greedy

    return write


def equations(jaxpr, name):
    """Every equation of this primitive, in whatever it lies."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, name)


@pytest.mark.parametrize("layout", [{}, {"scan_layers": True}], ids=["plain", "scan"])
def test_masters_are_cast_before_the_loop(layout):
    """No float32 matrix of the decoder goes into the loop, and none is cast in it."""
    structure, params = split(small_captioner(dtype="bfloat16", **layout))
    assert {x.dtype for x in params.values()} == {jnp.dtype("float32")}
    traced = jax.make_jaxpr(writer(structure))(params, images(2))
    (loop,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "while")
    into = [v.aval for v in loop.invars if v.aval.ndim > 1 and v.aval.dtype == jnp.float32]
    cached = {(2, 1, T)}  # log-probabilities of what is written
    assert {x.shape for x in into} <= cached
    body = loop.params["body_jaxpr"].jaxpr
    apart = structure.map(Captioner.for_decoding).shapes
    shapes = {x.shape for n, x in apart.items() if n.startswith("lm.") and len(x.shape) > 1}
    cast = [e for e in equations(body, "convert_element_type") if e.invars[0].aval.shape in shapes]
    assert not [e for e in cast if e.params["new_dtype"] == jnp.bfloat16]


def test_they_are_gathered_before_the_loop_and_write_the_same():
    """On fsdp: the compiled loop gathers no weight."""
    structure, params = split(small_captioner())
    expected = jax.jit(writer(structure))(params, images(8))
    mesh = make_mesh(1, 8, 1)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, structure.shardings(mesh))
        pixels = jax.device_put(images(8), batch_sharding(mesh))
        compiled = jax.jit(writer(structure)).lower(sharded, pixels).compile()
        found = compiled(sharded, pixels)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    computations = compiled.as_text().split("\n\n")
    gathering = [c for c in computations if "all-gather(" in c]
    assert len(gathering) == 1 and "ENTRY" in gathering[0]


def test_vectors_stay_as_they_are():
    """Norms read theirs in float32."""
    structure, params = split(small_captioner(dtype="bfloat16"))
    ready = split(for_decoding(structure.merge(params)))[1]
    assert ready["lm.norm.scale"].dtype == jnp.float32
    assert ready["lm.layers.0.attn.q.kernel"].dtype == jnp.bfloat16
    assert ready["projector.linear_1.kernel"].dtype == jnp.float32
