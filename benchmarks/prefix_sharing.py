"""What one shared prefix per image saves: the SCST update of K captions per image, two ways.

    python benchmarks/prefix_sharing.py

`shared` is the library's step: an image is projected and prefilled once, and its K captions attend
to the same keys and values. `repeated` is what trainers without the [B, R] axis do: K copies of
the image, one caption each. Same weights, same captions, same loss (checked); forward and backward,
interleaved, median of 7. The vision tower is left out of both (its features come from a cache).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.decoders import MistralConfig
from har_jax.models.encoders.clip import VisionConfig
from har_jax.models.functional import split

B, K, T = 16, 5, 20


def main() -> None:
    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}, JAX {jax.__version__}; B={B}, K={K}, T={T}")
    for grid in (4, 8, 16):
        vision: Any = VisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16 * grid,
            patch_size=16,
        )
        lm = MistralConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            sliding_window=None,
        )
        structure, params = split(
            Captioner(CaptionerConfig(vision=vision, lm=lm), rngs=nnx.Rngs(0))
        )
        params = {k: v for k, v in params.items() if not k.startswith("vision.")}
        tower = {k: jnp.zeros(x.shape) for k, x in structure.shapes.items() if k not in params}
        features = jax.random.normal(jax.random.key(1), (B, grid**2, 128))
        tokens = jax.random.randint(jax.random.key(2), (B, K, T), 0, 1000)

        def loss(params, features, tokens, tower=tower, structure=structure):
            captioner = structure.merge({**tower, **params})
            cache = captioner.prefill(captioner.project(features))
            return -jnp.mean(captioner.score(cache, tokens))

        step = jax.jit(jax.value_and_grad(loss))
        ways = {
            "shared": (features, tokens),
            "repeated": (jnp.repeat(features, K, axis=0), tokens.reshape(B * K, 1, T)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        losses = {}
        for repeat in range(8):
            for name, batch in ways.items():
                began = time.perf_counter()
                value, _ = jax.block_until_ready(step(params, *batch))
                losses[name] = float(value)
                if repeat:
                    times[name].append(time.perf_counter() - began)
        assert abs(losses["shared"] - losses["repeated"]) < 1e-4, losses
        shared, repeated = (statistics.median(times[name]) for name in ways)
        print(
            f"P={grid**2 + 1:>4}: shared {1e3 * shared:7.1f} ms, "
            f"repeated {1e3 * repeated:7.1f} ms, {repeated / shared:.2f} times"
        )


if __name__ == "__main__":
    main()
