"""A scanner from regular expressions, built state by state while it reads.

It takes the longest match over all rules, and of equally long ones the first rule, as the lexer
generators of the flex family do; Python's `re` takes the first alternative that matches, whatever
its length, so it cannot stand in for them.

Syntax of a pattern: `x` (a literal, either case), `[a-z]`, `[^...]`, `[[:letter:]...]` (classes,
exact case), `{NAME}` (a definition), `( | )`, `* + ? {m} {m,n}`, `\\` before anything special.
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set

# Letters (and digits) that Unicode got after version 6.2, which the Stanford lexer was built with.
_LATER_LETTERS = """
037F 0528-052F 0560 0588 05EF 0860-086A 0870-0887 0889-088E 08A1 08AD-08C9 0978 0980 09FC 0AF9 0C34
0C5A 0C5C-0C5D 0C80 0CDC-0CDD 0D04 0D54-0D56 0D5F 0E86 0E89 0E8C 0E8E-0E93 0E98 0EA0 0EA8-0EA9 0EAC
13F5 13F8-13FD 16F1-16F8 170D 171F 1878 191D-191E 19B0-19C0 19C8-19C9 1B4C 1C80-1C8A 1C90-1CBA
1CBD-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF A698-A69D A78F A794-A79F
A7AB-A7DC A7F1-A7F7 A8FD-A8FE A9E0-A9E4 A9E6-A9EF A9FA-A9FE AA7E-AA7F AB30-AB5A AB5C-AB69 AB70-ABBF
0DE6-0DEF A9F0-A9F9
"""


@functools.cache
def _later() -> frozenset[str]:
    later = set()
    for item in _LATER_LETTERS.split():
        first, _, last = item.partition("-")
        later |= {chr(i) for i in range(int(first, 16), int(last or first, 16) + 1)}
    return frozenset(later)


def is_letter(c: str) -> bool:
    if c.isascii():
        return c.isalpha()
    return (unicodedata.category(c)[0] == "L" and c not in _later()) or c in "\u1885\u1886"


def is_digit(c: str) -> bool:
    return unicodedata.category(c) == "Nd" and c not in _later()


def is_uppercase(c: str) -> bool:
    return unicodedata.category(c) == "Lu" or c in _OTHER_UPPERCASE


_OTHER_UPPERCASE = frozenset(map(chr, (*range(0x2160, 0x2170), *range(0x24B6, 0x24D0))))
_NAMED = {"letter": is_letter, "digit": is_digit, "uppercase": is_uppercase}


@dataclasses.dataclass(frozen=True)
class CharSet:
    """A set of characters by ranges and predicates."""

    ranges: tuple[tuple[str, str], ...]
    named: tuple[str, ...] = ()
    negated: bool = False

    @property
    def ascii(self) -> Set[int]:
        """Its members among the first 128 characters."""
        inside = set[int]()
        for low, high in self.ranges:
            inside.update(range(ord(low), min(ord(high), 127) + 1))
        inside = inside.union(*(_ascii_of(name) for name in self.named))
        return _ASCII - inside if self.negated else inside

    def __contains__(self, c: str) -> bool:
        inside = any(low <= c <= high for low, high in self.ranges)
        return (inside or any(_NAMED[name](c) for name in self.named)) != self.negated


_ASCII = frozenset(range(128))


@functools.cache
def _ascii_of(name: str) -> frozenset[int]:
    return frozenset(code for code in _ASCII if _NAMED[name](chr(code)))


class _Compiler:
    """Compiles patterns, each to (first state, last state), by Thompson's construction.

    Attributes:
      empty: of each state, where its empty moves lead.
      moves: of each state, the move that it has over a character set, if any.
    """

    def __init__(self, definitions: Mapping[str, str]):
        self.definitions = definitions
        self.empty: list[list[int]] = []
        self.moves: list[tuple[CharSet, int] | None] = []
        self.text, self.at = "", 0

    def state(self) -> int:
        self.empty.append([])
        self.moves.append(None)
        return len(self.empty) - 1

    def compile(self, pattern: str) -> tuple[int, int]:
        outer = self.text, self.at
        self.text, self.at = pattern, 0
        fragment = self._alternatives()
        if self.at != len(pattern):
            raise ValueError(f"unexpected {pattern[self.at]!r} at {self.at} in {pattern!r}")
        self.text, self.at = outer
        return fragment

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _alternatives(self) -> tuple[int, int]:
        branches = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._sequence())
        if len(branches) == 1:
            return branches[0]
        first, last = self.state(), self.state()
        for begin, end in branches:
            self.empty[first].append(begin)
            self.empty[end].append(last)
        return first, last

    def _sequence(self) -> tuple[int, int]:
        first = last = self.state()
        while self._peek() not in ("", "|", ")"):
            begin, end = self._repeated()
            self.empty[last].append(begin)
            last = end
        return first, last

    def _repeated(self) -> tuple[int, int]:
        start = self.at
        fragment = self._atom()
        low, high = self._counts()
        if (low, high) == (1, 1):
            return fragment
        copies = [fragment]
        resume = self.at
        while len(copies) < max(low, high or 1):  # compile the same text again
            self.at = start
            copies.append(self._atom())
        self.at = resume
        empty = self.empty
        first, last = self.state(), self.state()
        end = first
        for i, (begin, finish) in enumerate(copies):
            if i >= low:
                empty[end].append(last)
            empty[end].append(begin)
            if high is None and i == len(copies) - 1:
                empty[finish].append(begin)
            end = finish
        empty[end].append(last)
        return first, last

    def _counts(self) -> tuple[int, int | None]:
        """How often the atom before is repeated; None is without end."""
        c = self._peek()
        if c and c in "*+?":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        if c == "{" and self.text[self.at + 1].isdigit():
            close = self.text.index("}", self.at)
            low, comma, high = self.text[self.at + 1 : close].partition(",")
            self.at = close + 1
            return int(low), int(high) if comma else int(low)
        return 1, 1

    def _atom(self) -> tuple[int, int]:
        c = self._peek()
        self.at += 1
        if c == "(":
            fragment = self._alternatives()
            self.at += 1
            return fragment
        if c == "{":
            close = self.text.index("}", self.at)
            name = self.text[self.at : close]
            self.at = close + 1
            return self.compile(self.definitions[name])
        if c == "[":
            return self._move(self._char_class())
        if c == "\\":
            c = self._escape()
        cases = sorted({c, c.lower(), c.upper()} if len(c.upper()) == 1 else {c, c.lower()})
        return self._move(CharSet(tuple((x, x) for x in cases)))

    def _move(self, chars: CharSet) -> tuple[int, int]:
        first, last = self.state(), self.state()
        self.moves[first] = (chars, last)
        return first, last

    def _escape(self) -> str:
        """The character after a backslash."""
        c = self.text[self.at]
        self.at += 1
        if c == "u":
            self.at += 4
            return chr(int(self.text[self.at - 4 : self.at], 16))
        return {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "0": "\0"}.get(c, c)

    def _char_class(self) -> CharSet:
        negated = self._peek() == "^"
        self.at += negated
        ranges, named = [], []
        while self._peek() != "]":
            if self.text.startswith("[:", self.at):
                close = self.text.index(":]", self.at)
                named.append(self.text[self.at + 2 : close])
                self.at = close + 2
                continue
            low = high = self._class_char()
            if self._peek() == "-" and self.text[self.at + 1] != "]":
                self.at += 1
                high = self._class_char()
            ranges.append((low, high))
        self.at += 1
        return CharSet(tuple(ranges), tuple(named), negated)

    def _class_char(self) -> str:
        c = self._peek()
        self.at += 1
        return self._escape() if c == "\\" else c


class State(dict):
    """A state of the deterministic automaton: character -> next state, or None where it ends.

    Entries appear as characters are read (`__missing__`); two threads may compute the same one,
    with the same result. `rule` is the first rule that accepts here, or None.
    """

    __slots__ = ("_automaton", "_moves", "_steps", "rule")

    def __init__(self, automaton: Automaton, members: frozenset[int]):
        self._automaton = automaton
        self._moves = automaton.moves_of(members)
        self._steps: dict[int, State | None] = {}
        accepting = [automaton.accepts[m] for m in members if m in automaton.accepts]
        self.rule = min(accepting, default=None)

    def __missing__(self, c: str) -> State | None:
        # Characters that belong to the same sets behave alike, so their steps are shared.
        sets = self._automaton.sets_of(c)
        if sets not in self._steps:
            targets = {them for chars, them in self._moves if sets >> chars & 1}
            self._steps[sets] = self._automaton.reached(targets)
        self[c] = result = self._steps[sets]
        return result


class Automaton:
    """Recognises several patterns at once.

    Args:
      patterns: the rules, the more important first.
      definitions: what `{NAME}` stands for.
    """

    def __init__(self, patterns: Sequence[str], definitions: Mapping[str, str]):
        nfa = _Compiler(definitions)
        ends = [nfa.compile(pattern) for pattern in patterns]
        self._empty = nfa.empty
        self.accepts = {end: i for i, (_, end) in enumerate(ends)}
        self._sets: dict[CharSet, int] = {}
        # Of each state of the NFA: (number of a character set, where its characters lead).
        self._moves = [
            (self._sets.setdefault(move[0], len(self._sets)), move[1]) if move else None
            for move in nfa.moves
        ]
        self._states: dict[frozenset[int], State] = {}
        self._reached: dict[int, frozenset[int]] = {}
        self._sets_of: dict[str, int] = {}
        start = self.reached([begin for begin, _ in ends])
        assert start is not None  # there is a pattern
        self.start = start

    def _reach(self, seed: int) -> frozenset[int]:
        """The states of the NFA that empty moves reach from one, of those that move or accept."""
        if seed not in self._reached:
            members, queue = {seed}, [seed]
            while queue:
                for target in self._empty[queue.pop()]:
                    if target not in members:
                        members.add(target)
                        queue.append(target)
            moves, accepts = self._moves, self.accepts
            self._reached[seed] = frozenset(m for m in members if moves[m] or m in accepts)
        return self._reached[seed]

    def moves_of(self, members: Iterable[int]) -> list[tuple[int, int]]:
        """(number of a character set, the NFA's state that its characters lead to) of some."""
        return [move for member in members if (move := self._moves[member])]

    def reached(self, targets: Iterable[int]) -> State | None:
        """The state of all that these states of the NFA reach."""
        members = frozenset().union(*map(self._reach, targets))
        if not members:
            return None
        if members not in self._states:
            self._states[members] = State(self, members)
        return self._states[members]

    def sets_of(self, c: str) -> int:
        """The character sets that hold c, as bits."""
        if c not in self._sets_of and c.isascii():  # all of them at once, by ranges
            bits = dict.fromkeys(_ASCII, 0)
            for chars, i in self._sets.items():
                for code in chars.ascii:
                    bits[code] |= 1 << i
            self._sets_of |= {chr(code): sets for code, sets in bits.items()}
        elif c not in self._sets_of:
            self._sets_of[c] = sum(1 << i for chars, i in self._sets.items() if c in chars)
        return self._sets_of[c]

    def ends(self, text: str, begin: int, stop: int) -> list[int]:
        """Every position up to `stop` where a match that starts at `begin` may end, ascending."""
        found = []
        state: State | None = self.start
        for i in range(begin, stop):
            state = state[text[i]]
            if state is None:
                break
            if state.rule is not None:
                found.append(i + 1)
        return found

    def matches(self, text: str, begin: int, stop: int) -> bool:
        """Whether `text[begin:stop]` as a whole is a match."""
        ends = self.ends(text, begin, stop)
        return bool(ends) and ends[-1] == stop
