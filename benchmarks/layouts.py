"""What the decoder's parameter layouts cost and save: compiling, a training step, writing.

    python benchmarks/layouts.py [--layers=8] [--width=256] [--rounds=7]

Both layouts (`config.model.scan_layers`) hold the same random weights.
A training step is forward, backward and AdamW of K captions for each of B images on a shared prefix
(without a vision tower: features are given); writing is one greedy and K sampled captions. Losses
and greedy captions must agree. Compile times are processor seconds, of all threads, of one
compilation without a cache on disk; the others are medians of interleaved rounds. `temporary` is
XLA's own count of what the training step needs beside its arguments and results; below, the same
for each way of rematerialisation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from har_jax.decoding import DecodePlan, decode
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.decoders import MistralConfig
from har_jax.models.functional import Structure, structure_of
from har_jax.models.layouts import convert

B, P, K, T, VOCABULARY, FEATURES = 8, 17, 5, 16, 2000, 128
LAYOUTS = {"plain": {}, "scan": {"scan_layers": True}}


def structure_in(layout: Mapping[str, Any], layers: int, width: int) -> Structure[Captioner]:
    lm = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=max(1, width // 128),
        head_dim=32,
        sliding_window=None,
    )
    config = CaptionerConfig(vision=None, lm=lm, features=(P, FEATURES), **layout)
    return structure_of(lambda: Captioner(config, rngs=nnx.Rngs(0)))


def train_step(structure: Structure[Captioner], optimizer: Any) -> Callable[..., Any]:
    def loss_of(params, features, tokens):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(features))
        return -jnp.mean(captioner.score(cache, tokens))

    def step(params, state, features, tokens):
        loss, grads = jax.value_and_grad(loss_of)(params, features, tokens)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def write(structure: Structure[Captioner]) -> Callable[..., Any]:
    plan = DecodePlan(T, greedy=True, samples=K)

    def run(params, features):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(features))
        return decode(captioner, cache, plan, jax.random.key(0)).together.tokens

    return run


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The program, and the processor's seconds that tracing and compiling it took."""
    began = time.process_time()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.process_time() - began


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, run in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def mib(program: Any) -> float:
    return program.memory_analysis().temp_size_in_bytes / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    device, rng = jax.devices()[0], np.random.default_rng(0)
    print(
        f"{device.platform}: {device.device_kind}, JAX {jax.__version__}; {args.layers} layers of "
        f"{args.width}, B={B}, P={P}, K={K}, T={T}"
    )
    shapes = structure_in({}, args.layers, args.width).shapes
    plain = {n: rng.normal(size=x.shape, scale=0.02).astype("f4") for n, x in shapes.items()}
    plain = {n: jnp.ones_like(x) if n.endswith("scale") else x for n, x in plain.items()}
    features = rng.normal(size=(B, P, FEATURES)).astype("f4")
    tokens = rng.integers(0, VOCABULARY, (B, K, T)).astype("i4")

    def prepare(layout: Mapping[str, Any]) -> tuple[Structure[Captioner], dict, Any, Any, float]:
        structure = structure_in(layout, args.layers, args.width)
        params = jax.jit(lambda p: convert(p, structure.shapes))(plain)
        optimizer = optax.adamw(1e-4)
        arguments = (params, jax.jit(optimizer.init)(params), features, tokens)
        program, seconds = compiled(train_step(structure, optimizer), *arguments)
        return structure, params, program, lambda: program(*arguments), seconds

    steps, writers, rows, losses, captions = {}, {}, {}, {}, {}
    for name, layout in LAYOUTS.items():
        structure, params, program, steps[name], seconds = prepare(layout)
        losses[name] = float(steps[name]()[2])
        writer, writing = compiled(write(structure), params, features)
        writers[name] = lambda writer=writer, params=params: writer(params, features)
        captions[name] = np.asarray(writers[name]())[:, 0]
        rows[name] = seconds, mib(program), writing
    assert np.ptp(list(losses.values())) < 1e-4, losses
    agree = np.mean([(captions[n] == captions["plain"]).all(axis=-1) for n in LAYOUTS])
    assert agree > 0.9, agree  # a near-tie may fall otherwise by rounding
    step_ms, write_ms = interleaved(steps, args.rounds), interleaved(writers, args.rounds)
    print("| layout | compile step | step | temporary | compile writing | writing |")
    print("|---|---|---|---|---|---|")
    for name, (seconds, temporary, writing) in rows.items():
        print(
            f"| {name} | {seconds:.1f} s | {step_ms[name]:.0f} ms | {temporary:.0f} MiB | "
            f"{writing:.1f} s | {write_ms[name]:.0f} ms |"
        )
    steps, sizes = {}, {}
    for remat in ("none", "dots", "full"):
        layout = {**LAYOUTS["scan"], "remat": remat}
        _, _, program, steps[remat], _ = prepare(layout)
        sizes[remat] = mib(program)
    step_ms = interleaved(steps, args.rounds)
    print("| remat (scan) | step | temporary |")
    print("|---|---|---|")
    for remat in steps:
        print(f"| {remat} | {step_ms[remat]:.0f} ms | {sizes[remat]:.0f} MiB |")


if __name__ == "__main__":
    main()
