"""What people bring, and worse: values, texts, paths, damaged bytes and damaged JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

TEXTS = [
    "", " ", "\t\n", "nan", "None", "null", "a\0b", "a\rb", "a\nb", "\u2028", "\x85", "\ud800",
    "x" * 5_000, "a" * 300, "<script>alert(1)</script>", "../../etc/passwd", "/etc/passwd",
    "C:\\a.jpg", "~", "~/a", "gs://bucket/a", "s3://b/a", "-1", "1e999", "0x10", "1_000", "١٢",
    "\ufeffa", "{}", "[]", '"', "%s", "{0}", "${HOME}", "🙂🙂", "a\u0301", "\u202eabc",
    '["a", "b"]', "=1+1", ".", "..", "/", "//", "CON", "é" * 400,
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63) - 1, 10**40, 10**400, 0.5, -0.0, 1.5,
    1e-300, 1e300, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice([*range(128), 0xE9, 0x301, 0x4E2D, 0x1F600])) for _ in range(9))


def number(rng: random.Random) -> int | float:
    return rng.choice(NUMBERS) if rng.random() < 0.8 else rng.randrange(-1000, 100_000)


def value(rng: random.Random, depth: int = 2) -> Any:
    """A value of JSON of any kind."""
    kind = rng.randrange(8 if depth else 6)
    if kind < 2:
        return text(rng)
    if kind < 4:
        return number(rng)
    if kind < 6:
        return rng.choice([None, True, False, [], {}])
    some = [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return some if kind == 6 else {text(rng): item for item in some}


def damaged_json(rng: random.Random, whole: Any, times: int = 0) -> Any:
    """A copy of a value of JSON with a few of its parts replaced, dropped, doubled or renamed."""
    root = [copy.deepcopy(whole)]
    for _ in range(times or rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(root))
        holder, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0 and holder is not root:
            del holder[key]
        elif what == 1 and isinstance(holder, list) and holder is not root:
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif what == 2 and isinstance(holder, dict):
            holder[text(rng)] = holder.pop(key)
        else:
            holder[key] = value(rng)
    return root[0]


def _places(holder: Any) -> Any:
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for key, item in list(items):
        yield holder, key
        if isinstance(item, dict | list) and item:
            yield from _places(item)


def json_bytes(rng: random.Random, whole: Any) -> bytes:
    """A damaged value as a file's bytes, or a whole one's damaged bytes."""
    if rng.random() < 0.75:
        broken = json.dumps(damaged_json(rng, whole), ensure_ascii=rng.random() < 0.5)
        return broken.encode(errors="surrogatepass")
    if rng.random() < 0.15:
        return rng.choice([b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b"", b"null", b"\xff"])
    return damaged(rng, json.dumps(whole).encode())


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut off, lost, doubled, put in or set to zero."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(made) + 1)
        n = rng.choice([1, 1, 4, 16, 200])
        what = rng.randrange(6)
        if what == 0:
            del made[at:]
        elif what == 1:
            del made[at : at + n]
        elif what == 2:
            made[at:at] = made[at : at + n]
        elif what == 3:
            made[at:at] = rng.randbytes(n)
        elif what == 4:
            made[at : at + n] = bytes(len(made[at : at + n]))
        elif at < len(made):
            made[at] ^= 1 << rng.randrange(8)
    return bytes(made)
