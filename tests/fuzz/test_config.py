"""Configurations: dictionaries, overrides, config files."""

from __future__ import annotations

import copy
import pathlib
import random
from typing import Any

import pytest

from har_jax import config_file
from har_jax.config import Config, check, check_devices
from har_jax.presets import mle, scst
from tests.fuzz import hostile
from tests.fuzz.harness import Case, attempt

WHOLE = [scst.TINY.to_dict(), mle.TINY.to_dict()]
KEYS = [
    f"{a}.{b}" if b else a
    for a, v in WHOLE[0].items()
    for b in (v if isinstance(v, dict) else [""])
]
ODD_KEYS = [
    "",
    ".",
    "optim.",
    ".lr",
    "optim..lr",
    "optim.lr.x",
    "learning_rate",
    "lora.rank",
    "\0",
    "x" * 3000,
]


def of_dict(rng: random.Random, folder: pathlib.Path) -> Case:
    values = hostile.damaged_json(rng, rng.choice(WHOLE))

    def call() -> None:
        config = Config.from_dict(values)
        check(config)
        check_devices(config, 8)

    return Case(call)


def word(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return hostile.text(rng)
    if kind == 1:
        try:
            return str(hostile.number(rng))
        except ValueError:  # more digits than Python writes
            return "9" * 5000
    if kind == 2:
        return rng.choice(["true", "False", "None", "[]", "{}", "1e999", "-1e999", "nan", "0b1"])
    return rng.choice(["(" * 5000, "[" * 90_000, "1" * 5000, "1if 2else 3", "'a'", "b'a'", "1j"])


def of_overrides(rng: random.Random, folder: pathlib.Path) -> Case:
    keys = [
        rng.choice(KEYS if rng.random() < 0.9 else ODD_KEYS)
        for _ in range(rng.choice([1, 1, 2, 4]))
    ]
    preset = rng.choice(
        ["scst:tiny", "mle:tiny", "scst:coco", "mle", "scst:", "mle:x", "none:tiny"]
    )
    return Case(lambda: config_file.load(preset, {key: word(rng) for key in keys}))


ENDS = [
    "raise ValueError('no')", "raise KeyError", "raise SystemExit(3)", "import sys; sys.exit()",
    "import no_such_module", "from har_jax import no_such_name", "assert False", "1 / 0", "(",
    "def get_config(): pass", "get_config = 3", "def get_config(a, b, c): return {}",
    "def get_config(preset=''): return [1]",
    "def get_config(preset=''): raise RuntimeError(preset)",
    "def get_config(preset=''): raise SystemExit", "def get_config(p=''): return get_config(p)",
    "class C:\n    def to_dict(self): return 3\ndef get_config(preset=''): return C()",
    "class C:\n    def to_dict(self): raise OSError(28, 'full')\ndef get_config(p=''): return C()",
    "x = '\0'", "\ufeff", "\ud800", "def get_config(preset=''):\n\treturn {}\n        x",
    "def get_config(preset=''): raise Exception('a\\nb' * 900)", "raise MemoryError",
]  # fmt: skip


def of_file(rng: random.Random, folder: pathlib.Path) -> Case:
    path = folder / rng.choice(["a.py", "a.py", "a.py", "a.txt", "é.py"])
    if rng.random() < 0.4:
        text = rng.choice(ENDS)
    else:
        values = repr(hostile.damaged_json(rng, rng.choice(WHOLE)))
        text = f"nan = float('nan')\ninf = 1e999\ndef get_config(preset=''):\n    return {values}\n"
    data = text.encode(errors="surrogatepass")
    path.write_bytes(hostile.damaged(rng, data) if rng.random() < 0.2 else data)
    spec = rng.choice(
        [str(path)] * 8
        + [f"{path}:tiny", f"{path}:", str(folder), "gs://a/b.py:c", "\0", "a" * 5000]
    )
    return Case(lambda: config_file.load(spec))


def draw(rng: random.Random, folder: pathlib.Path) -> Case:
    return rng.choice([of_dict, of_dict, of_overrides, of_file])(rng, folder)


@pytest.mark.usefixtures("untyped")
def test_configurations(tmp_path, record_property):
    before: Any = copy.deepcopy(WHOLE)
    attempt("configuration", 4000, draw, tmp_path, record_property)
    assert before == WHOLE
