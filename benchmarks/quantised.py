"""What int8 and nf4 kernels change: log-probabilities of captions, against float32 kernels.

    python benchmarks/quantised.py                       # random decoders
    python benchmarks/quantised.py --run=runs/demo/mle-0   # and a run, on its validation captions

The decoder's linears are quantised, nothing else. `largest` and `mean` are of |change of log P|
over the tokens of the captions (of a random decoder: random tokens), `loss` is the mean of -log P.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
import tempfile
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.config import ModelConfig
from har_jax.loading.blueprint import Blueprint, of_parts
from har_jax.loading.captioner import load_captioner
from har_jax.models.captioner import CaptionerConfig
from har_jax.models.decoders import MistralConfig
from har_jax.models.functional import Params, split
from har_jax.models.logprobs import length_mask
from har_jax.models.quantised import SCHEMES, layouts, quantise

P, DV, T = 10, 64, 20
Shown = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Pixels or features, tokens [B,R,T], lengths [B,R]."""


def log_probabilities(blueprint: Blueprint, params: Params, batches: Iterable[Shown]) -> np.ndarray:
    """Of all tokens of all captions, in order."""

    @jax.jit
    def score(params: Params, images: jax.Array, tokens: jax.Array) -> jax.Array:
        captioner = blueprint.structure.merge(params)
        return captioner.score(
            captioner.prefill(captioner.project(captioner.encode(images))), tokens
        )

    found = []
    for images, tokens, lengths in batches:
        mask = np.asarray(length_mask(jnp.asarray(lengths), tokens.shape[-1])) > 0
        found.append(np.asarray(score(params, images, tokens))[mask])
    return np.concatenate(found)


def compare(name: str, blueprint: Blueprint, params: Params, batches: list[Shown]) -> None:
    """Prints a row for each scheme."""
    exact = log_probabilities(blueprint, params, batches)
    for scheme in SCHEMES:
        low = blueprint.changed(dataclasses.replace(blueprint.model, frozen_dtype=scheme))
        made = dict(params)
        for kernel, layout in layouts(low.shapes).items():
            rows = made.pop(kernel)
            made[f"{kernel}.codes"], made[f"{kernel}.scales"] = quantise(rows, layout, jnp)
        assert made.keys() == low.shapes.keys()
        found = log_probabilities(low, made, batches)
        change = np.abs(found - exact)
        print(
            f"{name:28} {scheme:5} {change.max():8.4f} {change.mean():8.4f} "
            f"{-exact.mean():8.4f} {-found.mean():8.4f} {len(exact):8}",
            flush=True,
        )


def random_decoder(hidden: int, layers: int) -> tuple[Blueprint, Params, list[Shown]]:
    """Weights as they are born, random features and random tokens."""
    lm = MistralConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        sliding_window=None,
    )
    model = ModelConfig(projector="patch", train_lm=False)
    config = CaptionerConfig(vision=None, lm=lm, features=(P, DV))
    with tempfile.TemporaryDirectory() as directory:
        blueprint = of_parts(model, config, None, pathlib.Path(directory))
        params = split(blueprint.build(nnx.Rngs(0)))[1]
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 1000, (16, 5, T)).astype(np.int32)
    features = rng.standard_normal((16, P, DV), dtype=np.float32)
    return blueprint, params, [(features, tokens, np.full((16, 5), T, np.int32))]


def of_run(run: str, images: int) -> tuple[Blueprint, Params, list[Shown]]:
    """A run, the images of its validation split and their captions."""
    from har_jax.data.dataset import open_split

    loaded = load_captioner(run, dtype="float32", merge=True)
    data, encode = loaded.config.data, loaded.tokenizer.encode
    dataset = open_split(data.dir, data.val_split)
    batches = []
    for at in range(0, min(images, len(dataset)), 32):
        examples = [dataset[i] for i in range(at, min(at + 32, images, len(dataset)))]
        rows = [[encode(text)[: data.max_tokens] for text in e.captions] for e in examples]
        most = max(map(len, rows))
        lengths = np.zeros((len(rows), most), np.int32)
        tokens = np.full((*lengths.shape, data.max_tokens), loaded.tokenizer.eos_id, np.int32)
        for b, captions in enumerate(rows):
            for r, ids in enumerate(captions):
                tokens[b, r, : len(ids)], lengths[b, r] = ids, len(ids)
        batches.append((loaded.preprocess([e.image for e in examples]), tokens, lengths))
    return loaded.blueprint, loaded.params, batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", help="an MLE or SCST run of har_jax.train")
    parser.add_argument("--images", type=int, default=200, help="of the run's validation split")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}, JAX {jax.__version__}")
    print(f"{'':28} {'':5} {'largest':>8} {'mean':>8} {'loss':>8} {'then':>8} {'tokens':>8}")
    makers = {
        "random, 0.9 M": functools.partial(random_decoder, 128, 4),
        "random, 5 M": functools.partial(random_decoder, 256, 6),
    }
    if args.run:
        makers[args.run] = functools.partial(of_run, args.run, args.images)
    for name, make in makers.items():
        compare(name, *make())


if __name__ == "__main__":
    main()
