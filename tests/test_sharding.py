"""Logical axes to mesh axes: golden specs of a captioner, and what a contradiction says."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from har_jax.errors import UserError
from har_jax.models.captioner import Captioner
from har_jax.models.functional import split, structure_of
from har_jax.sharding import (
    ROLLOUT_RULES,
    RULES,
    make_mesh,
    partition_spec,
    resolve_mesh_shape,
    sharding_of,
)
from tests.helpers import initialise, small_captioner, small_config


def structure():
    from flax import nnx

    return structure_of(lambda: Captioner(small_config(), rngs=nnx.Rngs(0)))


def test_golden_specs():
    specs = {n: s.spec for n, s in structure().shardings(make_mesh(2, 2, 2)).items()}
    assert specs["lm.embed_tokens.embedding"] == P("tensor", "fsdp")
    assert specs["lm.layers.0.attn.q.kernel"] == P("fsdp", "tensor", None)
    assert specs["lm.layers.1.attn.k.kernel"] == P("fsdp", "tensor", None)
    assert specs["lm.layers.0.attn.o.kernel"] == P("tensor", None, "fsdp")
    assert specs["lm.layers.0.mlp.gate.kernel"] == P("fsdp", "tensor")
    assert specs["lm.layers.0.mlp.down.kernel"] == P("tensor", "fsdp")
    assert specs["lm.lm_head.kernel"] == P("fsdp", "tensor")
    assert specs["projector.linear_1.kernel"] == P("fsdp", "tensor")


def test_a_rollout_holds_no_fsdp_shards():
    specs = structure().shardings(make_mesh(1, 4, 2), ROLLOUT_RULES).values()
    assert not any("fsdp" in jax.tree.leaves(tuple(s.spec)) for s in specs)


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(1, 4, 2)
    assert sharding_of((6, 3), ("embed", "mlp"), mesh).spec == P(None, None)
    assert sharding_of((8, 4), ("embed", "mlp"), mesh).spec == P("fsdp", "tensor")


def test_contradictions():
    with pytest.raises(UserError, match=r"no sharding rule .* 'embde' \(did you mean 'embed'\?\)"):
        partition_spec(("embde",))
    with pytest.raises(UserError, match=r"two of its axes .* mesh axis 'tensor'"):
        partition_spec(("mlp", "heads"), RULES, "w")


@pytest.mark.parametrize(
    ("shape", "n", "expected"),
    [((1, -1, 1), 8, (1, 8, 1)), ((2, -1, 2), 8, (2, 2, 2)), ((-1, 1, 1), 1, (1, 1, 1))],
)
def test_mesh_shapes(shape, n, expected):
    assert resolve_mesh_shape(shape, n) == expected


@pytest.mark.parametrize("shape", [(3, -1, 1), (-1, -1, 1), (0, 1, 1), (2, 2, 1), (1, -2, 1)])
def test_impossible_meshes(shape):
    with pytest.raises(UserError, match="mesh"):
        resolve_mesh_shape(shape, 8)


def test_parameters_are_born_in_their_shards():
    from flax import nnx

    mesh = make_mesh(1, 4, 2)
    made, params = initialise(
        lambda key: Captioner(small_config(), rngs=nnx.Rngs(key)), seed=0, mesh=mesh
    )
    for name, sharding in made.shardings(mesh).items():
        assert params[name].sharding == sharding
        whole = params[name].size
        part = params[name].addressable_shards[0].data.size
        assert part * sharding.num_devices >= whole


def test_split_and_merge_are_inverse():
    captioner = small_captioner()
    structure, params = split(captioner)
    assert set(params) == set(structure.shapes)
    again = split(structure.merge(params))[1]
    assert all((again[n] == params[n]).all() for n in params)
