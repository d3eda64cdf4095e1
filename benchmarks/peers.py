"""A training step against transformers and PyTorch, the same weights, captions and loss.

    python benchmarks/peers.py                   # a decoder of 4 M parameters, P=10 and P=257
    python benchmarks/peers.py --size=61m --rounds=5

The peer is what PyTorch's users write when they write it well: `MistralForCausalLM` with SDPA, one
`generate` for the greedy caption and one for the K samples under `inference_mode` with the static
shapes of a fixed length, then one update in which the image's prefix is repeated for each caption,
AdamW fused; all cores. With `--compile` the peer's update is also tried under `torch.compile` (it
needs a C++ compiler), and its faster time counts. Neither side encodes images (both read the same
features) nor pays for a reward. Contestants run in turn, each shape twice before it counts, and
medians are told. Losses of the updates are compared first: a figure counts only where they are
equal.

`floor` is the time of the matrix products alone, at the speed of a product of 1024 x 1024 measured
in the same run.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.decoding import DecodePlan, decode
from har_jax.hardware import keep_memory
from har_jax.interchange.families.registry import family_of, read_decoder
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.functional import Params, part, prefixed, split

B, K, T, DV = 16, 5, 20, 64
SIZES = {
    "4m": dict(vocab_size=1000, hidden_size=256, intermediate_size=688, num_hidden_layers=6),
    "61m": dict(vocab_size=32_000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8),
}


def torch_decoder(size: str) -> Any:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        **SIZES[size],
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=SIZES[size]["hidden_size"] // 8,
        max_position_embeddings=512,
        sliding_window=None,
        attn_implementation="sdpa",  # type: ignore  # of the base class
    )
    return transformers.MistralForCausalLM(config)


class Ours:
    """The library's captioner and AdamW, each phase jitted."""

    def __init__(self, directory: pathlib.Path, p: int):
        lm = read_decoder(directory)
        config = CaptionerConfig(vision=None, lm=lm, features=(p, DV), bos_id=None)
        self.structure, params = split(Captioner(config, rngs=nnx.Rngs(0)))
        shapes, axes = part(self.structure.shapes, "lm"), part(self.structure.logical_axes, "lm")
        loaded = family_of(lm).load_params(shapes, axes, lm, directory)
        self.params: Params = {**params, **prefixed(loaded, "lm")}
        self.optimizer = optax.adamw(1e-5)
        self.state = self.optimizer.init(self.params)
        self.plan = DecodePlan(T, greedy=True, samples=K)

        def loss(params: Params, features: Any, tokens: Any, weights: Any) -> Any:
            captioner = self.structure.merge(params)
            cache = captioner.prefill(captioner.project(features))
            return -jnp.mean(captioner.score(cache, tokens) * weights[..., None])

        def update(params: Params, state: Any, features: Any, tokens: Any, weights: Any) -> Any:
            value, grads = jax.value_and_grad(loss)(params, features, tokens, weights)
            updates, state = self.optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        def roll(params: Params, features: Any, key: Any) -> Any:
            captioner = self.structure.merge(params)
            cache = captioner.prefill(captioner.project(features))
            return decode(captioner, cache, self.plan, key).together.tokens

        def step(params: Params, state: Any, features: Any, key: Any, weights: Any) -> Any:
            """As training's: the prefix is computed once for rollout and update."""

            def whole(params: Params) -> Any:
                captioner = self.structure.merge(params)
                cache = captioner.prefill(captioner.project(features))
                writing = self.structure.merge(jax.lax.stop_gradient(params))
                written = decode(writing, jax.lax.stop_gradient(cache), self.plan, key)
                assert written.samples is not None
                tokens = written.samples.tokens
                return -jnp.mean(captioner.score(cache, tokens) * weights[..., None])

            value, grads = jax.value_and_grad(whole)(params)
            updates, state = self.optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        self.loss, self.roll = jax.jit(loss), jax.jit(roll)
        donating = (0, 1)  # as training does, and as PyTorch writes into what is there
        steps = (jax.jit(f, donate_argnums=donating) for f in (update, step))
        self._steps: dict[str, Any] = dict(zip(("mle", "scst"), steps, strict=True))

    def step(self, name: str, *given: Any) -> None:
        self.params, self.state, _ = self._steps[name](self.params, self.state, *given)
        jax.block_until_ready(self.params)


class Peer:
    """transformers' decoder and a projector of the same weights."""

    def __init__(self, model: Any, ours: Ours):
        self.model = model.train()
        self.body = self.model.model
        one, two = (torch.nn.Linear(DV, model.config.hidden_size), None)
        two = torch.nn.Linear(model.config.hidden_size, model.config.hidden_size)
        for layer, name in ((one, "linear_1"), (two, "linear_2")):
            kernel = np.asarray(ours.params[f"projector.{name}.kernel"])
            layer.weight.data = torch.tensor(kernel.T.copy())
            layer.bias.data = torch.tensor(np.asarray(ours.params[f"projector.{name}.bias"]).copy())
        self.projector = torch.nn.Sequential(one, torch.nn.GELU(), two)
        learns = [*self.model.parameters(), *self.projector.parameters()]
        self.optimizer = torch.optim.AdamW(learns, lr=1e-5, weight_decay=1e-4, fused=True)

    def loss(self, features: Any, tokens: Any, weights: Any) -> Any:
        b, r, t = tokens.shape
        prefix = self.projector(features).repeat_interleave(r, dim=0)
        flat = tokens.reshape(b * r, t)
        known = self.model.get_input_embeddings()(flat[:, :-1])
        hidden = self.body(inputs_embeds=torch.cat([prefix, known], dim=1)).last_hidden_state
        logits = self.model.lm_head(hidden[:, prefix.shape[1] - 1 :])
        nats = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), flat.reshape(-1), reduction="none"
        )
        return (nats.reshape(b, r, t) * weights[..., None]).mean()

    def compiled(self) -> Peer:
        """The same weights and optimizer, with the update's decoder under `torch.compile`."""
        other = copy.copy(self)
        other.body = torch.compile(self.model.model, dynamic=False)
        return other

    def mle(self, features: Any, tokens: Any, weights: Any) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(features, tokens, weights)
        loss.backward()
        self.optimizer.step()
        return float(loss)

    def roll(self, features: Any) -> Any:
        """The greedy caption, and K samples: two calls, each of which makes the prefix."""
        how: dict[str, Any] = dict(max_new_tokens=T, min_new_tokens=T, pad_token_id=0)
        with torch.inference_mode():
            prefix = self.projector(features)
            mask = torch.ones(prefix.shape[:2], dtype=torch.long)
            given = dict(inputs_embeds=prefix, attention_mask=mask, **how)
            self.model.generate(**given, do_sample=False)
            drawn = self.model.generate(**given, do_sample=True, num_return_sequences=K, top_k=0)
        return drawn.reshape(len(features), K, T).clone()

    def scst(self, features: Any, weights: Any) -> float:
        return self.mle(features, self.roll(features), weights)


def peak() -> float:
    """Operations a second of a product of 1024 x 1024, of the faster of the two libraries."""
    x = jnp.ones((1024, 1024))
    product = jax.jit(lambda x: x @ x)
    y = torch.ones(1024, 1024)
    ours = _median(lambda: product(x).block_until_ready(), 20)
    return 2 * 1024**3 / min(ours, _median(lambda: y @ y, 20))


def _median(call: Callable[[], Any], rounds: int) -> float:
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def floors(ours: Ours, p: int, speed: float) -> dict[str, float]:
    """Seconds of the products, two operations for each number and token, backward twice that."""
    sizes = {n: x.size for n, x in ours.params.items() if n.endswith("kernel")}
    head = sizes["lm.lm_head.kernel"]
    body = sum(size for n, size in sizes.items() if n.startswith("lm.")) - head
    rows = B * (K + 1) * T
    rollout = 2 * body * (B * p + rows) + 2 * head * rows
    update = 6 * (body * (B * p + B * K * T) + head * B * K * T)
    work = {"mle": update, "rollout": rollout, "scst": rollout + update - 2 * body * B * p}
    return {name: flops / speed for name, flops in work.items()}


def compare(size: str, p: int, rounds: int, compiled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = torch_decoder(size)
        model.save_pretrained(folder)
        ours = Ours(pathlib.Path(folder), p)
    peer = Peer(model, ours)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((B, p, DV)).astype(np.float32)
    tokens = rng.integers(3, SIZES[size]["vocab_size"], (B, K, T))
    weights = rng.standard_normal((B, K)).astype(np.float32)
    mine = jnp.asarray(features), jnp.asarray(tokens), jnp.asarray(weights)
    theirs = torch.tensor(features), torch.tensor(tokens), torch.tensor(weights)
    a, b = float(ours.loss(ours.params, *mine)), float(peer.loss(*theirs))
    if abs(a - b) > 1e-4 * max(1, abs(b)):
        raise SystemExit(f"the losses differ: {a} here, {b} in PyTorch")
    key = jax.random.key(0)

    def our_step(name: str) -> Callable[[], Any]:
        def call() -> None:
            if name == "rollout":
                jax.block_until_ready(ours.roll(ours.params, mine[0], key))
                return
            ours.step(name, *((mine[0], key, mine[2]) if name == "scst" else mine))

        return call

    def their_steps(peer: Peer) -> dict[str, Callable[[], Any]]:
        return {
            "mle": lambda: peer.mle(*theirs),
            "rollout": lambda: peer.roll(theirs[0]),
            "scst": lambda: peer.scst(theirs[0], theirs[2]),
        }

    sides = [{name: our_step(name) for name in ("mle", "rollout", "scst")}, their_steps(peer)]
    if compiled:
        sides.append(their_steps(peer.compiled()))
        del sides[-1]["rollout"]  # the same
    contestants = {name: [side[name] for side in sides if name in side] for name in sides[0]}
    for calls in contestants.values():  # twice each, before anything counts
        for call in (*calls, *calls):
            call()
    times: dict[str, list[list[float]]] = {n: [[] for _ in c] for n, c in contestants.items()}
    for _ in range(rounds):
        for name, calls in contestants.items():
            for call, seen in zip(calls, times[name], strict=True):
                began = time.perf_counter()
                call()
                seen.append(time.perf_counter() - began)
    least = floors(ours, p, peak())
    for name, seen in times.items():
        us, *peers = map(statistics.median, seen)
        them = min(peers)
        told = ", ".join(f"{t * 1e3:,.0f} ms" for t in peers)
        print(
            f"| {size} | {p} | {name} | {us * 1e3:,.0f} ms | {told} | "
            f"{them / us:.2f} x | {us / least[name]:.1f} | {them / least[name]:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="4m")
    parser.add_argument("--prefix", type=int, nargs="+", default=[10, 257])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also try torch.compile")
    arguments = parser.parse_args()
    keep_memory()  # as `train` does; it is the allocator of both sides
    versions = f"JAX {jax.__version__}, PyTorch {torch.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads; B={B}, K={K}, T={T}, float32")
    print(
        "| decoder | P | step | har_jax | PyTorch (, compiled) | gain | x floor | PyTorch x floor |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for p in arguments.prefix:
        compare(arguments.size, p, arguments.rounds, arguments.compile)


if __name__ == "__main__":
    main()
