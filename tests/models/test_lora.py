"""LoRA's factors beside plain arithmetic: what they compute, and that merging computes the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from har_jax.config import LoraConfig
from har_jax.errors import UserError
from har_jax.interchange import peft
from har_jax.models import lora
from har_jax.models.decoders import Mistral
from har_jax.models.functional import split, structure_of
from har_jax.models.layers import Linear
from har_jax.models.layouts import convert
from har_jax.sharding import make_mesh, replicated
from tests.helpers import LM, OTHER_FAMILIES, small_lm

CONFIG = LoraConfig(rank=3, alpha=6.0, targets="attn.(q|o)|mlp.down|lm_head")
SCALE = CONFIG.alpha / CONFIG.rank


def build(config=None, lm=LM, **layout):
    """A decoder with adapters, as `loading.blueprint` makes it."""

    def adapt(block, rngs):
        lora.attach(block, config, rngs=rngs, prefix="layers")

    rngs = nnx.Rngs(0)
    hook = adapt if config is not None and layout.get("scan_layers") else None
    model = Mistral(lm, rngs=rngs, adapt=hook, **layout)
    if config is not None:
        lora.attach(model, config, rngs=rngs)
    return model


def drawn(structure):
    """Parameters far from those at the start: B is no longer zero."""
    random = np.random.default_rng(0)
    return {
        name: jnp.asarray(random.normal(0, 0.3, x.shape), jnp.float32)
        for name, x in structure.shapes.items()
    }


@functools.cache
def adapted():
    structure = structure_of(lambda: build(CONFIG))
    return structure, drawn(structure)


def logits(structure, params, tokens):
    @jax.jit
    def run(params):
        model = structure.merge(params)
        hidden, _ = model.prefill(model.embed(tokens))
        return model.logits(hidden)

    return np.asarray(run(params))


TOKENS = jnp.array([[1, 5, 9, 2, 3, 3, 7]])


@pytest.mark.parametrize("ins,outs", [((6,), (4,)), ((6,), (2, 4)), ((2, 4), (6,))])
def test_a_linear_with_factors(ins, outs):
    axes = (None,) * (len(ins) + len(outs))
    linear = Linear(ins, outs, axes, bias=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((5, *ins)).astype(np.float32)
    plain = linear(jnp.asarray(x))
    linear.add_lora(3, 0.5, rngs=nnx.Rngs(1))
    assert linear.lora_a is not None and linear.lora_b is not None
    np.testing.assert_array_equal(linear(jnp.asarray(x)), plain)  # B is zero: nothing changed yet
    a = np.asarray(linear.lora_a[...])
    bound = np.prod(ins) ** -0.5  # torch.nn.init.kaiming_uniform_(a=sqrt(5)), as PEFT calls it
    assert 0.8 * bound < np.abs(a).max() <= bound and abs(a.mean()) < 0.4 * bound
    linear.lora_b[...] = jnp.ones((3, *outs)) * jnp.arange(1.0, 4).reshape(3, *[1] * len(outs))
    b = np.asarray(linear.lora_b[...]).reshape(3, -1)
    want = plain + 0.5 * (x.reshape(5, -1) @ a.reshape(-1, 3) @ b).reshape(5, *outs)
    np.testing.assert_allclose(linear(jnp.asarray(x)), want, atol=1e-5)


def test_names_and_logical_axes():
    structure, params = adapted()
    names = [f"layers.{i}.{n}" for i in range(2) for n in ("attn.o", "attn.q", "mlp.down")]
    factors = {f"{n}.{f}" for n in (*names, "lm_head") for f in ("lora_a", "lora_b")}
    assert {n for n in params if lora.is_factor(n)} == factors
    axes = structure.logical_axes
    assert axes["layers.0.attn.o.lora_a"] == ("heads", "head_dim", "lora")
    assert axes["layers.0.attn.o.lora_b"] == ("lora", "embed")
    assert axes["layers.1.attn.q.lora_a"] == ("embed", "lora")
    assert axes["layers.1.attn.q.lora_b"] == ("lora", "heads", "head_dim")
    assert params["layers.0.mlp.down.lora_a"].shape == (LM.intermediate_size, 3)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_factors_are_drawn_apart(scan_layers):
    """No two layers start alike, and at the start nothing is changed."""
    config = LoraConfig(rank=3, targets="mlp.down")

    @jax.jit
    def factors():
        params = split(build(config, scan_layers=scan_layers))[1]
        return {n: x for n, x in params.items() if lora.is_factor(n)}

    params = factors()
    if scan_layers:
        a, b = params["layers.mlp.down.lora_a"], params["layers.mlp.down.lora_b"]
    else:
        a, b = (
            jnp.stack([params[f"layers.{i}.mlp.down.lora_{f}"] for i in range(2)]) for f in "ab"
        )
    assert a.shape == (2, LM.intermediate_size, 3) and b.shape == (2, 3, LM.hidden_size)
    assert not np.array_equal(a[0], a[1]) and a.std() > 0.4 * LM.intermediate_size**-0.5
    assert not b.any()


@pytest.mark.parametrize(
    "pattern,name,wanted",
    [
        ("attn.(q|v)", "layers.11.attn.v", True),
        ("attn.(q|v)", "layers.11.attn.k", False),
        ("q", "layers.0.attn.q", True),
        ("q", "layers.0.attn.qq", False),
        ("up", "layers.0.mlp.gate_up", False),  # only whole parts of a name
        ("layers.1.attn.q", "layers.11.attn.q", False),
        (r"layers\.(1|2)\..*", "layers.2.mlp.down", True),
        ("attn.q|mlp.down", "layers.0.mlp.down", True),
    ],
)
def test_patterns(pattern, name, wanted):
    assert lora.matches(pattern, name) == wanted


def test_a_pattern_that_matches_nothing_names_what_there_is():
    model = nnx.eval_shape(build)
    config = LoraConfig(rank=2, targets="attention.query")
    assert lora.attach(model, config, rngs=nnx.Rngs(0)) == []
    with pytest.raises(UserError, match=r"'attention.query' .* attn.q, .*mlp.down, .*lm_head"):
        lora.check_targets(model, config)


def test_merging_computes_the_same():
    structure, params = adapted()
    plain = structure_of(build)
    base = {name: params[name] for name in plain.shapes}
    whole = lora.merged(params, SCALE)
    assert set(whole) == set(base)
    wanted = logits(structure, params, TOKENS)
    np.testing.assert_allclose(logits(plain, whole, TOKENS), wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(wanted - logits(plain, base, TOKENS)).max() > 0.1 * np.abs(wanted).max()
    changed = {n for n in base if not np.array_equal(base[n], whole[n])}
    assert changed == {f"{n}.kernel" for n in lora.linears(plain.merge(base)) if _wanted(n)}
    # float64 arithmetic of one kernel, with two axes on either side.
    a, b = (np.asarray(params[f"layers.1.attn.o.lora_{f}"], np.float64) for f in "ab")
    want = np.asarray(base["layers.1.attn.o.kernel"], np.float64) + SCALE * np.tensordot(a, b, 1)
    np.testing.assert_allclose(whole["layers.1.attn.o.kernel"], want, rtol=1e-6, atol=1e-6)
    traced = jax.jit(lambda p: lora.merged(p, SCALE))(params)
    np.testing.assert_allclose(traced["lm_head.kernel"], whole["lm_head.kernel"], rtol=1e-6)


def _wanted(name):
    return lora.matches(CONFIG.targets, name)


def test_merging_stacked_kernels_in_their_shards_and_dtype():
    """One axis more in front, as `scan_layers` keeps them; bfloat16 is rounded once."""
    structure, params = adapted()
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    names = [f"attn.o.{n}" for n in ("kernel", "lora_a", "lora_b")]
    stacked = {n: jnp.stack([params[f"layers.{i}.{n}"] for i in range(2)]) for n in names}
    stacked["attn.o.kernel"] = stacked["attn.o.kernel"].astype(jnp.bfloat16)
    shardings = structure.shardings(mesh)
    spec = jax.sharding.PartitionSpec(None, *shardings["layers.0.attn.o.kernel"].spec)
    where = jax.sharding.NamedSharding(mesh, spec)
    stacked["attn.o.kernel"] = jax.device_put(stacked["attn.o.kernel"], where)
    stacked |= {n: jax.device_put(stacked[n], replicated(mesh)) for n in names[1:]}
    out = lora.merged(stacked, SCALE)
    assert list(out) == ["attn.o.kernel"]
    assert out["attn.o.kernel"].sharding == where and out["attn.o.kernel"].dtype == jnp.bfloat16
    kernel = np.asarray(stacked["attn.o.kernel"], np.float32)
    a, b = (np.asarray(stacked[f"attn.o.lora_{f}"]) for f in "ab")
    want = kernel + SCALE * np.einsum("lnhr,lrd->lnhd", a, b)
    np.testing.assert_allclose(np.asarray(out["attn.o.kernel"], np.float32), want, rtol=2**-8)


def test_logits_past_the_head_are_float32_with_an_adapter_too():
    """The head's product keeps its float32 sums under bfloat16 activations."""
    structure, params = adapted()
    model = structure.merge(params)
    x = jnp.ones((3, LM.hidden_size), jnp.bfloat16)
    out = model.lm_head(x, wide=jnp.float32)
    assert out.dtype == jnp.float32
    assert model.lm_head(x).dtype == jnp.bfloat16


ADAPTED = [("mistral", False), *((family, True) for family in ("mistral", *OTHER_FAMILIES))]


@pytest.mark.parametrize(("family", "scan_layers"), ADAPTED)
def test_adapters_in_every_layout(scan_layers, family, tmp_path):
    """As those of the layers apart: in logits, merged, and in PEFT's file."""
    config = LoraConfig(3, 6.0, "attn.(q|k|v|o|qkv)|mlp.(gate|up)|lm_head")
    lm = small_lm(family, **({} if family == "gpt2" else {"tie_word_embeddings": False}))
    structure = structure_of(lambda: build(config, lm, scan_layers=scan_layers))
    params = drawn(structure)
    factors = {n for n in params if lora.is_factor(n)}
    assert any(n.startswith("layers.attn") for n in factors) == scan_layers
    for name in factors:
        assert (structure.logical_axes[name][0] == "layers") == ("layers." in name and scan_layers)

    canonical = structure_of(lambda: build(config, lm))
    plain = convert(params, canonical.shapes)
    wanted = logits(canonical, plain, TOKENS)
    tolerance = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(logits(structure, params, TOKENS), wanted, atol=tolerance)
    bare = structure_of(lambda: build(lm=lm, scan_layers=scan_layers))
    merged = logits(bare, lora.merged(params, SCALE), TOKENS)
    np.testing.assert_allclose(merged, wanted, atol=tolerance)

    peft.save_adapters(params, config, tmp_path, base="base", lm=lm)
    settings, found = peft.read_adapters(tmp_path, lm)
    assert (settings.rank, settings.alpha) == (3, 6.0)
    assert found.keys() == {n for n in plain if lora.is_factor(n)}
    for name, (row, tensor) in found.items():
        np.testing.assert_array_equal(row.read(tensor.map(), plain[name].shape), plain[name])
    again = structure_of(lambda: build(settings, lm))
    assert {n for n in again.shapes if lora.is_factor(n)} == found.keys()
