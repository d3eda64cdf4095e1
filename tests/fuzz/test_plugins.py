"""Rewards of users, and how they are named: modules that raise, exit, return what is no reward."""

from __future__ import annotations

import pathlib
import random
import sys

import numpy as np
import pytest

from har_jax.objectives.policy_gradient import find_objective
from har_jax.rewards import mix
from har_jax.rewards.limit import Limit
from har_jax.text.words import find_words
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

REFERENCES = {1: ["a dog runs"], 2: ["a cat", "cats"]}
TOPS = [
    "raise ValueError('no')", "raise SystemExit(0)", "import sys; sys.exit('bye')", "1/0", "(",
    "import no_such_module_at_all", "from os import no_such_name", "raise KeyError", "\0",
    "import time; time.sleep(0.05)", "assert False, 'x' * 5000", "raise Exception('a\\nb')",
    "raise MemoryError", "raise RecursionError", "def __getattr__(name): raise TypeError(name)",
    "from har_jax.errors import UserError\nraise UserError('mine')", "f = 3", "f = None",
    "class f: pass",
]  # fmt: skip
BODIES = [
    "return None", "return 1", "return 'a'", "return [[1, 2], [3]]", "return np.zeros(ended.shape)",
    "return np.full(ended.shape, np.nan)", "return np.full(ended.shape, np.inf)", "return ended",
    "return np.zeros((2, 3, 4))", "return np.zeros(ended.shape, object)", "return {}", "1/0",
    "raise ValueError('x' * 4000)", "raise SystemExit", "return f(image_ids, captions, ended)",
    "import time; time.sleep(0.2); return 0", "raise StopIteration",
    "captions.clear(); return ended",
    "return np.array(['1', 'a'])", "return np.full(ended.shape, 1e300)", "return 10**400",
    "return [[10**400] * 2] * 2",
    "class X:\n        def __array__(self, *a, **k): raise KeyError\n    return X()",
    "yield 1", "raise Exception('\\ud800')", "raise OSError(28, 'full')",
]  # fmt: skip
HEADS = [
    "image_ids, captions, ended",
    "image_ids, captions, ended, references",
    "*a",
    "a",
    "",
    "*, x",
]


def module(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(TOPS)
    head = rng.choice(HEADS if rng.random() < 0.3 else HEADS[:2])
    text = f"import numpy as np\ndef f({head}):\n    {rng.choice(BODIES)}\n"
    return text if rng.random() < 0.8 else f"{text}\n{rng.choice(TOPS)}\n"


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    name = f"users_{folder.name}"
    data = module(rng).encode(errors="surrogatepass")
    if rng.random() < 0.1:
        data = hostile.damaged(rng, data)
    (folder / f"{name}.py").write_bytes(data)
    spec = rng.choice(
        [f"{name}:f"] * 7 + [f"{name}", f"{name}:g", f"{name}:f:f", f".{name}:f", ":f"]
    )
    if rng.random() < 0.2:
        ends = rng.choice(["2*", "1e999*", "", "-"]), rng.choice(["", " +", "*3*3"])
        spec = f"bleu + {ends[0]}{spec}{ends[1]}"
    if rng.random() < 0.1:
        spec = hostile.text(rng)

    def call() -> None:
        sys.path.insert(0, str(folder))
        try:
            if rng.random() < 0.2:
                find_objective(spec)
                return
            if rng.random() < 0.2:
                assert isinstance(find_words(spec)("a dog"), list)
                return
            reward = mix.build(spec, None, REFERENCES)
            ended = np.ones((2, 2), bool)
            captions = [["a dog", "a"], ["a cat", ""]]
            ids = np.array([1, 2])
            limit = Limit(0.1)
            limit.call(lambda: reward.breakdown(ids, captions, ended), lambda: reward.signature)
        finally:
            sys.path.remove(str(folder))
            sys.modules.pop(name, None)

    return Case(call)


def test_plugins(tmp_path, record_property):
    attempt("rewards", 400, draw, tmp_path, record_property)


@pytest.mark.parametrize("text", ["import no_such_module_at_all", "raise SystemExit"])
def test_a_failing_import_names_its_place(tmp_path, monkeypatch, text):
    from har_jax.errors import UserError

    (tmp_path / "failing.py").write_text(f"\n\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"no module 'no_such_module_at_all'|failing.py, line 3"):
        mix.build("failing:f", None, REFERENCES)
