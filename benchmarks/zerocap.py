"""ZeroCap against the same algorithm in PyTorch, and what memoisation and batching are worth.

    python benchmarks/zerocap.py                    # small models: over ten minutes on 2 cores
    python benchmarks/zerocap.py --images=1 --candidates=128 --tokens=6         # two
    python benchmarks/zerocap.py --clip=HF_DIR --lm=HF_DIR --images=2

The peer is the transcription of the authors' program that the tests compare with
(`tests/zerocap/published.py`): transformers' GPT-2 and CLIP, all cores, one image at a time as the
authors' program goes; unlike theirs it pads texts to the longest of a batch and not to 77 tokens.
Four ways of ours do the same work, interleaved with it, everything compiled before:

    all            beginnings read once, a candidate judged once for a word, 8 images at a time
    one image      the same, without the batch
    no memory      a batch, but every iteration asks CLIP for all its candidates anew
    whole texts    a batch with memory, but CLIP reads each candidate from its beginning

Captions are compared: a figure counts only where they are equal.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from har_jax.zerocap.captioner import ZeroCap
from har_jax.zerocap.guidance import Context, Steered
from har_jax.zerocap.settings import Guidance
from tests.zerocap.published import Published, Settings
from tests.zerocap.worlds import draw_images, make_world, png_bytes

BATCH = 8


class Forgetful(ZeroCap):
    """Judges all candidates of every iteration, as the program does."""

    def _guide(
        self, context: Context, beginnings: Sequence[str], image_ne: Any, ids_nc: Any
    ) -> Steered:
        n, last = len(beginnings), jnp.asarray(self.how.iterations - 1)
        still = jax.tree.map(jnp.zeros_like, context.cache)
        at = Steered(still, last, ids_nc[:, : self.how.candidates], jnp.asarray(False))
        for _ in range(self.how.iterations):
            # With nothing known an iteration only tells its candidates; the last one is done then.
            word, unknown = self.judge.begin(beginnings, image_ne)
            asked = self._steer(self._params, context, unknown[:n], at._replace(done=last))
            cos_nv = self.judge.fill(unknown, word, np.asarray(asked.ids_nc))
            at = self._steer(self._params, context, cos_nv[:n], asked)
        return at


KEYS: list[Any] = [None]  # nothing is drawn


def whole_texts(zerocap: ZeroCap) -> ZeroCap:
    """Candidates are read from BOS on, by taking every beginning for an empty one."""
    crossing = zerocap.judge.crossing
    texts = crossing.texts
    crossing._spaced_v = np.zeros_like(crossing._spaced_v)
    bos = zerocap.clip.tokenize.bos_id

    def from_bos(beginnings: Sequence[str], rows: list[list[int]], ids_nc: np.ndarray) -> Any:
        return texts(beginnings, [[bos]] * len(rows), ids_nc)

    crossing.texts = from_bos
    return zerocap


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", help="HF directory; default: a small random one")
    parser.add_argument("--lm", help="HF directory; default: a small random one")
    parser.add_argument("--images", type=int, default=3, help="that the peer captions, each timed")
    parser.add_argument("--candidates", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not (args.clip and args.lm):
            world = make_world(folder, seed=3, width=128, layers=4)
            args.clip, args.lm = args.clip or world.clip, args.lm or world.gpt2
        compare(args)


def compare(args: argparse.Namespace) -> None:
    sizes = {"candidates": args.candidates, "max_tokens": args.tokens, "forbidden": "none"}
    how = Guidance.preset("repo", sizes)
    images = draw_images(BATCH, seed=1)
    pictures = [png_bytes(image) for image in images]
    settings = Settings(candidates=args.candidates, steps=args.tokens)
    published = Published(args.lm, args.clip, settings)
    one = ZeroCap(args.clip, args.lm, how, batch_size=1)
    many = {
        "all": ZeroCap(args.clip, args.lm, how, batch_size=BATCH),
        "no memory": Forgetful(args.clip, args.lm, how, batch_size=BATCH),
        "whole texts": whole_texts(ZeroCap(args.clip, args.lm, how, batch_size=BATCH)),
    }
    features = many["all"].features(pictures)

    def batch(zerocap: ZeroCap) -> Callable[[int], list[str]]:
        return lambda i: [w.text for w in zerocap.write(features, KEYS * BATCH)]

    ways: dict[str, tuple[Callable[[int], list[str]], int]] = {
        name: (batch(zerocap), BATCH) for name, zerocap in many.items()
    }
    ways["one image"] = (lambda i: [w.text for w in one.write(features[i : i + 1], KEYS)], 1)
    ways["PyTorch"] = (lambda i: [published.caption([images[i]]).with_prompt], 1)
    for name, (write, _) in ways.items():
        if name != "PyTorch":
            write(0)  # compiles
    times: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {name: [] for name in ways}
    for i in range(args.images):
        for name, (write, size) in ways.items():
            began = time.perf_counter()
            found = write(i)
            times[name].append((time.perf_counter() - began) / size)
            texts[name].append(found[i % size])
    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}, JAX {jax.__version__}, ", end="")
    print(f"torch {torch.__version__} on {torch.get_num_threads()} threads")
    print(f"{args.candidates} candidates, {args.tokens} tokens, {how.beams} beams\n")
    print("| | seconds an image | PyTorch / this | same captions |\n|---|---:|---:|---:|")
    peer = statistics.median(times["PyTorch"])
    for name in ("PyTorch", "all", "one image", "no memory", "whole texts"):
        median = statistics.median(times[name])
        same = sum(a == b for a, b in zip(texts[name], texts["PyTorch"], strict=True))
        print(f"| {name} | {median:.2f} | {peer / median:.1f} | {same} of {args.images} |")


if __name__ == "__main__":
    main()
