"""The parameter overview: layers as one line, what learns, and what a device holds."""

import jax
import jax.numpy as jnp

from har_jax.sharding import make_mesh, sharding_of
from har_jax.training.overview import parameter_overview


def test_the_overview():
    mesh = make_mesh(1, 4, 2)
    kernel = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    shapes = {f"lm.layers.{i}.mlp.up.kernel": kernel for i in range(12)}
    shapes["lm.norm.scale"] = jax.ShapeDtypeStruct((16,), jnp.float32)
    shapes["vision.logit_scale"] = jax.ShapeDtypeStruct((), jnp.bfloat16)
    axes = {"lm.norm.scale": (None,), "vision.logit_scale": ()}
    shardings = {
        name: sharding_of(x.shape, axes.get(name, ("embed", "mlp")), mesh, name=name)
        for name, x in shapes.items()
    }
    text = parameter_overview(shapes, {n for n in shapes if n.startswith("lm.")}, shardings)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows == [
        "parameter shape dtype split over numbers size a device",
        "lm.layers.*.mlp.up.kernel 12 x 16 x 64 float32 trained fsdp tensor "
        "12,288 48.0 KiB 6.0 KiB",
        "lm.norm.scale 16 float32 trained whole 16 64 B 64 B",
        "vision.logit_scale scalar bfloat16 frozen whole 1 2 B 2 B",
        "all 13 x trained 12,304 48.1 KiB 6.1 KiB",
        "all 1 x frozen 1 2 B 2 B",
    ]
    assert len({len(line) for line in text.splitlines()}) == 1  # columns are aligned
