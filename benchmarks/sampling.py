"""Drawing tokens: one uniform per row and two levels, against jax.random.categorical and argmax.

    python benchmarks/sampling.py

Interleaved, median of 20 calls each.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

from har_jax.decoding.sampling import draw


def main() -> None:
    methods = {
        "categorical": jax.jit(lambda k, x: jax.random.categorical(k, x)),
        "two-level draw": jax.jit(lambda k, x: draw(x, jax.random.uniform(k, x.shape[:-1]))),
        "argmax": jax.jit(lambda k, x: jnp.argmax(x, axis=-1)),
    }
    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}, JAX {jax.__version__}")
    print(f"{'rows':>5} {'vocabulary':>10}  " + "  ".join(f"{name:>15}" for name in methods))
    for rows, vocabulary in ((192, 677), (384, 2_000), (96, 32_000)):
        logits = jax.random.normal(jax.random.key(0), (rows, vocabulary)) * 3
        times: dict[str, list[float]] = {name: [] for name in methods}
        for repeat in range(21):
            for name, method in methods.items():
                began = time.perf_counter()
                method(jax.random.key(repeat), logits).block_until_ready()
                if repeat:  # the first call compiles
                    times[name].append(time.perf_counter() - began)
        figures = "  ".join(f"{1e3 * statistics.median(t):>12.2f} ms" for t in times.values())
        print(f"{rows:>5} {vocabulary:>10}  {figures}")


if __name__ == "__main__":
    main()
