"""What travels between devices, read from a compiled program's text."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

from har_jax.decoding.loop import DECODE_SCOPE

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (\S.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_ARRAY = re.compile(r"(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_LOOP = re.compile(r"while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of transfer, in one place of the program.

    Attributes:
      loop: the loops around it, outermost first, by the JAX operation that they come from.
      result: the type of what it leaves on a device, such as `bf16[4096,32000]`.
      count: how often the program's text has it; a loop runs it as often as it turns.
    """

    kind: str
    loop: tuple[str, ...]
    result: str
    bytes: int
    count: int


def in_decode_loop(found: Iterable[Collective]) -> list[Collective]:
    """Those that are made for every token."""
    named = re.compile(rf"\b{DECODE_SCOPE}\b")  # in a gradient's program: jvp(decode)
    return [c for c in found if any(named.search(loop) for loop in c.loop)]


def collectives(text: str) -> list[Collective]:
    """Those of a program (`compiled.as_text()`), the largest first."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = start[1]
            bodies[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current:
            bodies[current].append(line)
    found: collections.Counter[tuple[str, tuple[str, ...], str]] = collections.Counter()

    def walk(name: str, loops: tuple[str, ...], seen: frozenset[str]) -> None:
        for line in bodies.get(name, ()):
            if operation := _OPERATION.search(line):
                found[operation[2], loops, _largest(operation[1])] += 1
            loop = _LOOP.search(line)
            for called in _CALLED.findall(line):
                if called in bodies and called not in seen:
                    origin = _ORIGIN.search(line)
                    inner = (*loops, origin[1] if origin else called) if loop else loops
                    walk(called, inner, seen | {called})

    walk(entry, (), frozenset({entry}))
    rows = [Collective(k, loops, t, _bytes(t), n) for (k, loops, t), n in found.items()]
    return sorted(rows, key=lambda row: -row.bytes * row.count)


def _largest(result: str) -> str:
    """Of an asynchronous operation's tuple, what it leaves."""
    arrays = [match[0] for match in _ARRAY.finditer(result)]
    return max(arrays, key=_bytes, default=result)


def _bytes(array: str) -> int:
    match = _ARRAY.match(array)
    if match is None:
        return 0
    bits = re.search(r"\d+", match[1])
    width = max(1, int(bits[0]) // 8) if bits else 1
    return math.prod(int(n) for n in match[2].split(",") if n) * width
