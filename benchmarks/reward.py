"""CIDEr-D as a reward: this package against a pycocoevalcap-style scorer, on one CPU core.

    python -m benchmarks.reward [--images=64] [--captions=6] [--rounds=15]

Two comparisons on identical captions, interleaved, medians of the rounds:

    words      both sides get words; only CIDEr-D differs
    token ids  both sides get token ids of Mistral's tokenizer, where it is found (otherwise of one
               trained on the captions); decoding and words are included. The reference side decodes
               with the same tokenizer and splits its text with a regular expression, because the
               real PTB tokenizer starts Java

Document frequencies and our references are cooked before (the times are printed); the reference
cooks the references of an image anew for every candidate, as SCST trainers that call pycocoevalcap
or ruotianluo/cider do. "cold" is a call after the other functions ran, with the processor's caches
as they left them; "warm" the same call at once again. Neither repeats a caption within a call.
References are real captions where they are found, otherwise drawn from a Zipf distribution.
HAR_SHARED names the directory with data/.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from har_jax.metrics.cider_d import CiderD, DocumentFrequency
from har_jax.rewards.cider_d import CiderDReward
from har_jax.text import ptb
from har_jax.text.tokenizer import CaptionTokenizer, load_tokenizer, train_tokenizer

EOS = "<eos>"


def data() -> pathlib.Path:
    root = pathlib.Path(__file__).resolve().parent.parent
    return pathlib.Path(os.environ.get("HAR_SHARED", root.parent / "shared")) / "data"


def tokenizer(texts: dict[int, list[str]], scratch: str) -> tuple[str, CaptionTokenizer]:
    """Mistral's, or one of the same kind trained on the captions."""
    real = data() / "tokenizers" / "mistral_v1"
    if real.is_dir():
        return "Mistral", load_tokenizer(real)
    train_tokenizer((text for group in texts.values() for text in group), 8000, scratch)
    return "a trained BPE", load_tokenizer(scratch)


def real_or_drawn_references(seed: int) -> tuple[str, dict[int, list[str]]]:
    path = data() / "coco_val2017_captions.json"
    references: dict[int, list[str]] = {}
    if path.exists():
        for a in json.loads(path.read_text())["annotations"]:
            references.setdefault(a["image_id"], []).append(a["caption"])
        return "COCO val2017", references
    rng = np.random.default_rng(seed)

    def word(rank: int) -> str:
        return "".join(chr(ord("a") + int(digit)) for digit in str(rank))

    for image_id in range(5000):
        references[image_id] = [
            " ".join(map(word, rng.zipf(1.3, rng.integers(8, 16)) % 8000)) + "." for _ in range(5)
        ]
    return "drawn captions", references


def sampled_captions(references: dict[int, list[str]], ids: list[int], per_image: int, seed: int):
    """As a rollout might draw them: an image's captions with words replaced from another image."""
    rng = random.Random(seed)
    everything = list(references.values())
    captions = []
    for image_id in ids:
        group = []
        for _ in range(per_image):
            words = rng.choice(references[image_id]).split()
            other = rng.choice(rng.choice(everything)).split()
            at = rng.randint(0, len(words))
            group.append(" ".join(words[:at] + other[at:]))
        captions.append(group)
    return captions


class Reference:
    """CIDEr-D as pycocoevalcap has it, with given document frequencies, a caption at a time."""

    def __init__(self, references: dict[int, list[list[str]]]):
        from pycocoevalcap.cider.cider_scorer import CiderScorer

        self.scorer_class = CiderScorer
        self.texts = {
            i: [" ".join([*words, EOS]) for words in captions] for i, captions in references.items()
        }
        counting = CiderScorer()
        for texts in self.texts.values():
            counting.cook_append("", texts)
        counting.compute_doc_freq()
        self.document_frequency = counting.document_frequency
        self.n_images = len(references)

    def score(self, ids: list[int], captions: list[list[list[str]]]) -> np.ndarray:
        scorer = self.scorer_class()
        scorer.document_frequency = self.document_frequency
        for image_id, group in zip(ids, captions, strict=True):
            for words in group:
                scorer.cook_append(" ".join([*words, EOS]), self.texts[image_id])
        # It takes ln N from len(crefs) and zips crefs with ctest, so the length may lie.
        scorer.crefs = _Padded(scorer.crefs, self.n_images)
        return np.array(scorer.compute_cider()).reshape(len(ids), -1)


class _Padded(list):
    """A list that says another length."""

    def __init__(self, items, length):
        super().__init__(items)
        self.length = length

    def __len__(self):
        return self.length


def interleaved(rounds: int, *functions: Callable[[], object]) -> list[tuple[float, float]]:
    """For each function the median seconds of a call after the others, and of one repeated at once.

    The first finds the caches as the others left them (much as a training step does), the second
    finds its own data there.
    """
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            for repeat in taken:
                start = time.perf_counter()
                function()
                repeat.append(time.perf_counter() - start)
    return [(statistics.median(cold), statistics.median(warm)) for cold, warm in times]


def cpu_name() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
        return re.findall(r"model name\s*:\s*(.*)", text)[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--captions", type=int, default=6, help="per image")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    source, texts = real_or_drawn_references(args.seed)
    references = {i: [ptb.words(t) for t in captions] for i, captions in texts.items()}
    ids = random.Random(args.seed).sample(list(texts), args.images)
    captions = sampled_captions(texts, ids, args.captions, args.seed)
    words = [[ptb.words(t) for t in group] for group in captions]
    ended = np.ones((args.images, args.captions), bool)

    start = time.perf_counter()
    df = DocumentFrequency.from_references(references.values(), name=source)
    counted = time.perf_counter()
    ours = CiderD(df, references, eos=True)
    cooked = time.perf_counter()
    reward = CiderDReward(df, texts)
    theirs = Reference(references)

    with tempfile.TemporaryDirectory() as scratch:
        kind, lm = tokenizer(texts, scratch)
    tokens = [[ids[:-1] for ids in lm.encode_batch(group)] for group in captions]
    splitter = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")

    def ours_from_ids() -> np.ndarray:
        return reward(np.array(ids), [[lm.decode(t) for t in group] for group in tokens], ended)

    def theirs_from_ids() -> np.ndarray:
        split = [[splitter.findall(lm.decode(t).lower()) for t in group] for group in tokens]
        return theirs.score(ids, split)

    difference = np.abs(ours.score(ids, words) - theirs.score(ids, words)).max()
    ours_from_ids()
    theirs_from_ids()
    their_words, our_words, their_ids, our_ids = interleaved(
        args.rounds,
        lambda: theirs.score(ids, words),
        lambda: ours.score(ids, words),
        theirs_from_ids,
        ours_from_ids,
    )
    n = args.images * args.captions
    print(f"{cpu_name()}, one thread; {source}: {len(texts)} images; {n} captions a call")
    print(f"token ids of {kind}'s tokenizer, {lm.vocab_size} ids")
    print(f"document frequencies {counted - start:.2f} s, references {cooked - counted:.2f} s")
    print(f"largest difference {difference:.1e}; milliseconds a call\n")
    print(f"{'input, caches':17} {'reference':>13} {'har_jax':>11} {'ratio':>6} {'captions/s':>11}")
    for name, them, us in (("words", their_words, our_words), ("token ids", their_ids, our_ids)):
        for caches, slow, fast in zip(("cold", "warm"), them, us, strict=True):
            print(
                f"{name + ', ' + caches:17} {slow * 1e3:13.2f} {fast * 1e3:11.3f} "
                f"{slow / fast:5.0f}x {n / fast:11,.0f}"
            )


if __name__ == "__main__":
    main()
