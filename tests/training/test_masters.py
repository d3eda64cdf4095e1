"""Full fine-tuning in little memory: float32 masters under bfloat16 activations, and Adafactor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from har_jax.config import OptimConfig
from har_jax.models.functional import split
from har_jax.objectives.likelihood import make_mle_loss
from har_jax.sharding import MESH_AXES
from har_jax.training.optimizer import make_optimizer, make_schedule, muon_dimensions
from har_jax.training.step import make_train_step
from tests.helpers import images, small_captioner


def test_a_step_below_the_resolution_of_bfloat16_is_not_lost():
    """Gradients, moments and updates are float32; bfloat16 would round most of the update off."""
    structure, params = split(small_captioner(dtype="bfloat16"))
    trained = {k: v for k, v in params.items() if not k.startswith("vision.")}
    frozen = {k: v for k, v in params.items() if k not in trained}
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), MESH_AXES)
    shardings = {k: v for k, v in structure.shardings(mesh).items() if k in trained}
    config = OptimConfig(lr=1e-4, schedule="constant")
    step = make_train_step(
        make_mle_loss(structure), make_optimizer(config), make_schedule(config, 100), trained,
        shardings, mesh, 0,
    )  # fmt: skip
    batch = {
        "image": images(2),
        "tokens": jnp.array([[[3, 4, 5, 2]], [[6, 4, 7, 2]]]),
        "lengths": jnp.full((2, 1), 4),
    }
    before = jax.device_get(trained)
    state, _ = step(step.start(jax.device_put(trained, shardings)), frozen, batch)
    assert {str(x.dtype) for x in jax.tree.leaves(state.optimizer) if x.ndim} == {"float32"}
    moved, visible = 0, 0
    for name, old in before.items():
        new = np.asarray(state.params[name])
        assert new.dtype == np.float32, name
        # Adam's first step is lr for every weight; large ones have bfloat16 neighbours far away.
        large = (new != old) & (np.abs(old) > 0.1)
        np.testing.assert_allclose(np.abs(new - old)[large], 1e-4, rtol=0.05)
        moved += large.sum()
        visible += (new[large].astype(jnp.bfloat16) != old[large].astype(jnp.bfloat16)).sum()
    assert moved > 1000 and visible < 0.2 * moved


AXES = {
    "q": ("embed", "heads", "head_dim"),
    "o": ("heads", "head_dim", "embed"),
    "stacked": ("layers", "embed", "mlp"),
    "norm": ("embed",),
}
SHAPES = {"q": (160, 4, 48), "o": (4, 48, 160), "stacked": (3, 160, 200), "norm": (160,)}


def drawn(seed):
    random = np.random.default_rng(seed)
    return {k: random.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}


def as_matrices(values):
    """Kernels as matrices, and stacked ones as one for each layer."""
    layers = {f"stacked.{i}": layer for i, layer in enumerate(values["stacked"])}
    matrices = {"q": values["q"].reshape(160, 192), "o": values["o"].reshape(192, 160)}
    return {**matrices, **layers, "norm": values["norm"]}


def trajectory(optimizer, view=lambda values: values, rate=1.0):
    params = view(drawn(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), state

    for i in range(1, 5):
        params, state = step(params, state, view(drawn(i)))
    return jax.device_get(params), state


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_is_the_published_one(decay):
    """Against `optax.adafactor`, which is given the kernels as matrices, layer by layer."""
    config = OptimConfig(
        name="adafactor", lr=0.01, schedule="constant", clip_norm=0, weight_decay=decay
    )
    ours, state = trajectory(make_optimizer(config, AXES), rate=config.lr)
    reference = optax.adafactor(
        0.01,
        weight_decay_rate=0.01 * decay or None,
        weight_decay_mask=lambda params: {name: name != "norm" for name in params},
    )
    theirs, _ = trajectory(reference, as_matrices)
    for name, value in as_matrices(ours).items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
    factored = state[0][0]
    assert factored.v_row["q"].shape == (160,) and factored.v_col["q"].shape == (192,)
    assert factored.v_row["stacked"].shape == (3, 160)
    assert factored.v_col["stacked"].shape == (3, 200)
    assert factored.v["q"].size == factored.v["stacked"].size == 1
    assert factored.v["norm"].shape == (160,)  # vectors keep a moment each


def test_adafactor_needs_little_memory():
    params = {"lm.w": jax.ShapeDtypeStruct((4096, 32, 128), jnp.float32)}
    axes = {"lm.w": AXES["q"]}
    sizes = {
        name: sum(
            x.size
            for x in jax.tree.leaves(
                jax.eval_shape(make_optimizer(OptimConfig(name=name), axes).init, params)
            )
        )
        for name in ("adamw", "adafactor")
    }
    assert sizes["adamw"] > 2 * 4096**2 and sizes["adafactor"] < 3 * 4096


def test_stacked_norms_do_not_decay():
    axes = {"lm.layers.norm.scale": ("layers", "embed"), "lm.layers.mlp.up": AXES["stacked"]}
    params = {"lm.layers.norm.scale": jnp.ones((3, 4)), "lm.layers.mlp.up": jnp.ones((3, 4, 5))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    config = OptimConfig(lr=0.1, schedule="constant", weight_decay=0.5)
    optimizer = make_optimizer(config, axes)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    assert not updates["lm.layers.norm.scale"].any()
    np.testing.assert_allclose(updates["lm.layers.mlp.up"], -0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "axes,reduced,out",
    [
        (("embed", "heads", "head_dim"), (0,), (1, 2)),
        (("heads", "head_dim", "embed"), (0, 1), (2,)),
        (("layers", "heads", "head_dim", "lora"), (1, 2), (3,)),
        (("lora", "heads", "head_dim"), (0,), (1, 2)),
        (("layers", "lora", "embed"), (1,), (2,)),
    ],
)
def test_what_muon_takes_for_inputs_and_outputs(axes, reduced, out):
    dimensions = muon_dimensions(axes)
    assert dimensions is not None
    assert (dimensions.reduction_axis, dimensions.output_axis) == (reduced, out)


def test_muon_leaves_vectors_and_the_vocabulary_to_adam():
    for axes in (("embed",), ("layers", "embed"), ("vocab", "embed"), ("embed", "vocab")):
        assert muon_dimensions(axes) is None
