"""Stacked parameters: the same function, gradients and updates as the plain layout."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from har_jax.config import OptimConfig
from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.beam import beam_search
from har_jax.models.captioner import Captioner
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.functional import structure_of
from har_jax.models.layouts import canonical_names, convert
from har_jax.sharding import ROLLOUT_RULES, make_mesh
from har_jax.training.optimizer import make_optimizer
from tests.helpers import images, small_config

STACKED = dict(scan_layers=True)
CONFIG = MistralConfig(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    sliding_window=3,
)
# These programs run once: compiling them well takes longer than running them.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(structure, seed=0):
    """Parameters of a decided model, by numpy: nothing is compiled."""
    rng = np.random.default_rng(seed)
    return {
        n: rng.normal(size=x.shape, scale=0.3).astype("f4") for n, x in structure.shapes.items()
    }


def to(params, wanted):
    return jit(lambda p: convert(p, wanted))(params)


def structure_in(config, layout, **options):
    return structure_of(lambda: Mistral(config, rngs=nnx.Rngs(0), **layout, **options))


def all_ways(structure):
    """Logits of a prefix, of captions known and of captions written; gradients through the two."""
    d = structure.shapes["norm.scale"].shape[0]
    x_bpd = jax.random.normal(jax.random.key(1), (2, 4, d))
    tokens = jax.random.randint(jax.random.key(2), (2, 3, 5), 0, CONFIG.vocab_size)

    def forward(params):
        model = structure.merge(params)
        hidden, cache = model.prefill(x_bpd)
        known = model.logits(model.extend(model.embed(tokens), cache))
        return known, (model.logits(hidden), cache)

    def loss(params):
        known, (prefix, cache) = forward(params)
        logp = jax.nn.log_softmax(known)
        return -jnp.mean(jnp.take_along_axis(logp, tokens[..., None], -1)), (known, prefix, cache)

    def run(params):
        grads, (known, prefix, cache) = jax.grad(loss, has_aux=True)(params)
        model = structure.merge(params).for_decoding()

        def one(written, token_t):
            t, token = token_t
            hidden, written = model.step(model.embed(token), cache, written, t)
            return written, model.logits(hidden)

        steps = (jnp.arange(5), jnp.moveaxis(tokens, 2, 0))
        written = jax.lax.scan(one, model.empty_cache(2, 3, 5), steps)[1]
        return grads, {"prefix": prefix, "known": known, "written": jnp.moveaxis(written, 0, 2)}

    return jit(run)


def assert_same(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(float(jnp.abs(value).max()), 1e-6)
        np.testing.assert_allclose(got[name], value, atol=tolerance * scale, err_msg=name)


def test_stacked_layers_compute_the_same():
    """`tests/families` compares each with transformers; here gradients and decoding too."""
    structure = structure_in(CONFIG, {})
    params = drawn(structure)
    grads, logits = all_ways(structure)(params)
    assert float(jnp.abs(logits["known"]).max()) > 1
    other = structure_in(CONFIG, STACKED)
    held = to(params, other.shapes)
    assert {n: x.shape for n, x in held.items()} == {n: x.shape for n, x in other.shapes.items()}
    other_grads, other_logits = all_ways(other)(held)
    assert_same(other_logits, logits, 1e-5)
    assert_same(to(other_grads, structure.shapes), grads, 1e-5)


def test_conversion_is_exact_both_ways():
    """Adapters follow their kernels."""

    def adapt(block, rngs):
        block.attn.q.add_lora(2, 0.5, rngs=rngs)

    stacked = structure_in(CONFIG, STACKED, adapt=adapt)
    assert stacked.logical_axes["layers.attn.q.lora_b"][:2] == ("layers", "lora")
    params = drawn(stacked)
    names = {name: canonical_names(name, x.shape) for name, x in params.items()}
    assert names["layers.attn.q.lora_a"] == ["layers.0.attn.q.lora_a", "layers.1.attn.q.lora_a"]
    assert names["norm.scale"] == ["norm.scale"]
    apart = {
        each: jax.ShapeDtypeStruct(x.shape[x.shape[0] == 2 and len(those) == 2 :], x.dtype)
        for name, those in names.items()
        for x in [params[name]]
        for each in those
    }
    held = to(params, apart)
    assert {n: x.shape for n, x in held.items()} == {n: x.shape for n, x in apart.items()}
    np.testing.assert_array_equal(held["layers.1.attn.q.lora_a"], params["layers.attn.q.lora_a"][1])
    again = to(held, stacked.shapes)
    assert all((again[name] == x).all() for name, x in params.items())


def test_shardings():
    both = structure_of(lambda: Captioner(small_config(scan_layers=True), rngs=nnx.Rngs(0)))
    mesh = make_mesh(2, 2, 2)
    P = jax.sharding.PartitionSpec
    specs = {name: s.spec for name, s in both.shardings(mesh).items()}
    assert specs["lm.layers.attn.q.kernel"] == P(None, "fsdp", "tensor", None)
    assert specs["lm.layers.mlp.gate.kernel"] == P(None, "fsdp", "tensor")
    apart = both.map(Captioner.for_decoding)
    specs = {name: s.spec for name, s in apart.shardings(mesh, ROLLOUT_RULES).items()}
    assert specs["lm.layers.1.attn.q.kernel"] == P(None, "tensor", None)
    assert specs["lm.layers.0.mlp.down.kernel"] == P("tensor", None)


def test_a_scan_is_one_loop_and_decoding_has_none():
    """One for each network. The decoder's stack is taken apart once: no layer is sliced out of it
    inside the decode loop."""
    config = small_config(scan_layers=True)
    structure = structure_of(lambda: Captioner(config, rngs=nnx.Rngs(0)))
    stacks = {x.shape for n, x in structure.shapes.items() if n.startswith("lm.layers.")}

    def write(params):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(images(1))))
        beams = beam_search(captioner, cache, beams=2, max_tokens=4)
        return decode(captioner, cache, DecodePlan(4)), beams

    equations = jax.make_jaxpr(write)(structure.shapes).eqns
    assert sum(e.primitive.name == "scan" for e in equations) == 2
    loops = [e for e in equations if e.primitive.name == "while"]
    assert len(loops) == 2
    assert not stacks & {v.aval.shape for loop in loops for v in loop.invars}


def updates(name, structure, params, grads):
    """The first update of the parameters, after a clip of the whole gradient."""
    config = OptimConfig(name=name, lr=0.1, schedule="constant", weight_decay=0.1)
    optimizer = make_optimizer(config, {n: structure.logical_axes[n] for n in params})
    params, grads = jax.tree.map(jnp.asarray, (params, grads))
    return jit(lambda: optimizer.update(grads, optimizer.init(params), params)[0])()


def some(shapes, *names):
    return {n: x for n, x in shapes.items() if any(part in n for part in names)}


@pytest.mark.parametrize("name", ["muon", "adamw", "adafactor"])
def test_updates_of_stacked_parameters(name):
    """Muon orthogonalises, and Adafactor scales, each layer alone; decay spares norms."""
    structure, stacked = structure_in(CONFIG, {}), structure_in(CONFIG, STACKED)
    names = ("attn.q.", "mlp.down", "attn_norm", "embed_tokens")
    params, grads = (some(drawn(structure, seed), *names) for seed in (0, 1))
    grads = {n: x * (5 if ".1." in n else 1) for n, x in grads.items()}
    expected = updates(name, structure, params, grads)
    shapes = some(stacked.shapes, *names)
    got = updates(name, stacked, to(params, shapes), to(grads, shapes))
    assert_same(to(got, some(structure.shapes, *names)), expected, 1e-5)


@pytest.mark.parametrize("layout", [{}, STACKED], ids=["unrolled", "scan"])
def test_remat_keeps_less_and_changes_nothing(layout):
    deep = dataclasses.replace(CONFIG, num_hidden_layers=6 if layout else 3)
    x_bpd = jnp.asarray(np.random.default_rng(1).normal(size=(4, 16, 16)), "f4")
    grads, kept = {}, {}
    for remat in ("none", "dots", "full"):
        structure = structure_in(deep, layout, remat=remat)
        params = drawn(structure)

        def loss(params, structure=structure):
            return jnp.mean(structure.merge(params).prefill(x_bpd)[0][..., 0] ** 2)

        backward = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params)
        kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
        compiled = jit(jax.grad(loss)).lower(params).compile()
        grads[remat] = compiled(params)
        if layout:  # XLA's CPU backend merges again what an unrolled program repeats
            kept[remat, "compiled"] = compiled.memory_analysis().temp_size_in_bytes
    assert kept["full"] < kept["dots"] < kept["none"]
    if layout:
        sizes = [kept[remat, "compiled"] for remat in ("full", "dots", "none")]
        assert sizes[0] < sizes[1] < sizes[2]
    for remat in ("dots", "full"):
        assert_same(grads[remat], grads["none"], 1e-6)
