"""What attention reads and writes on TPUs, by our products and by the splash kernel; no TPU needed.

    pip install -e '.[preflight-tpu]'
    python benchmarks/splash.py

Compiled for four v5e chips (data 2, tensor 2) by libtpu: bytes that the compiled program moves to
and from memory on one chip, as its cost analysis counts them, and seconds to compile. Nothing is
run, so nothing is told of the time.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.errors import UserError
from har_jax.models.attention import KV, attend, heads_first
from har_jax.models.splash import splash_attention
from har_jax.sessions.topologies import describe, parse, prepare_environment
from har_jax.sharding import MESH_AXES

SHAPES = (  # name, B, T, N, K, H, causal
    ("prefix of 257", 8, 257, 32, 8, 128, True),
    ("prefix of 577", 8, 577, 32, 8, 128, True),
    ("prefix of 1024", 8, 1024, 32, 8, 128, True),
    ("ViT-L/14", 32, 257, 16, 16, 64, False),
)


def products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    own = KV(heads_first(k[:, None]), heads_first(v[:, None]))
    return attend(q[:, None], jnp.arange(q.shape[1]), None, own, None)[:, 0]


def compiled(f: Callable[..., Any], arguments: list[Any], mesh: Any) -> tuple[float, float]:
    """(bytes moved on a chip, seconds to compile)."""
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        program = jax.jit(f).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    cost: Any = program.cost_analysis()
    return cost["bytes accessed"], time.perf_counter() - began


def main() -> int:
    try:
        topology = parse("v5e:2x2")
        prepare_environment(topology)
        devices = describe(topology)
    except UserError as error:
        print(error)
        return 2
    types = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 1, 2), MESH_AXES, axis_types=types, devices=devices)
    where = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    print(f"{'':16}{'':10}{'ours':>10}{'splash':>10}{'compiled in':>20}")
    for name, b, t, n, k, h, causal in SHAPES:
        shapes = [(b, t, heads, h) for heads in (n, k, k)]
        given = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=where) for s in shapes]
        plain = products if causal else jax.nn.dot_product_attention
        splash = functools.partial(splash_attention, causal=causal)
        for kind in ("forward", "backward"):
            found = []
            for f in (plain, splash):

                def loss(*qkv: jax.Array, f: Any = f) -> jax.Array:
                    return jnp.sum(f(*qkv).astype(jnp.float32) ** 2)

                chosen = f if kind == "forward" else jax.grad(loss, (0, 1, 2))
                found.append(compiled(chosen, given, mesh))
            (ours, slow), (theirs, fast) = found
            moved = f"{ours / 1e6:7.0f} MB{theirs / 1e6:7.0f} MB"
            print(f"{name:16}{kind:10}{moved}{slow:10.1f} s{fast:7.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
