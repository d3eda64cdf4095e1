"""Words of a caption, as COCO's evaluation sees them, in pure Python.

COCO's PTBTokenizer is the Stanford PTB lexer (a Java program) with lower-casing, minus a list of
punctuation tokens. `tokens` gives the same tokens; `ptb_rules` says what the lexer takes for one.

A token may hold white space: "1 1/2" is one, with a no-break space inside. The scorers of CIDEr and
BLEU split there, that of ROUGE-L does not. `words` is what the former count: rewards, document
frequencies and whatever else asks for the words of a caption take it.

The Java tool reads all captions as one text, so that in rare cases its result depends on the next
caption: a final "plan B." keeps its period unless the next line begins with "The" and the like.
`tokens` lets each caption stand alone; `tokens_of_lines` does as the tool does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from har_jax.text.ptb_automaton import Automaton, State
from har_jax.text.ptb_rules import ABBREVIATIONS, DEFINITIONS, RULES, Rule

# COCO drops these tokens (pycocoevalcap/tokenizer/ptbtokenizer.py). They are compared after
# lower-casing there, so "-lrb-", which a "(" becomes, is a word.
_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION = frozenset(_DROPPED.split())

# Words of letters and hyphens, or with 's, with commas, periods and spaces between them: no rule
# looks across such a boundary but those of abbreviations, so these captions (nearly all of COCO)
# need no scanner.
_PLAIN_WORD = "(?:[A-Za-z]+(?:-[A-Za-z]+)*|[A-Za-z]{2,}'s)"
_PLAIN = re.compile(rf" *{_PLAIN_WORD}(?:[,.]? +{_PLAIN_WORD})*,? *")
_ABBREVIATION = re.compile(ABBREVIATIONS, re.IGNORECASE)
_WITH_PERIOD = re.compile(rf"\b(?:{ABBREVIATIONS})\.", re.IGNORECASE)
# What ends a caption when the next line matters: an initial, or an abbreviation before numbers.
_LOOKS_AHEAD = re.compile(
    r"(?<![A-Za-z])(?:[a-z]|ca|figs?|prop|nos?|art|bldg|pp|op)\.\s*\Z", re.IGNORECASE
)
# What the lexer takes for the end of a line, and thereby of a caption.
_BREAKS = dict.fromkeys(map(ord, "\n\r\x0b\x0c\u2028\u2029"), " ")
_BREAKS |= dict.fromkeys(range(0xD800, 0xE000), "?")  # as Java writes half a character
_APART = "can not, gon na, got ta, lem me, gim me, wan na"
_ASSIMILATED = {pair.replace(" ", ""): tuple(pair.split()) for pair in _APART.split(", ")}
_UNDIVIDED = frozenset(_ASSIMILATED)


def words(caption: str) -> list[str]:
    """The words of a caption: lower case, without punctuation or white space inside."""
    found = _without_scanner(caption)
    return split_tokens(_scan(caption)) if found is None else found


def tokens(caption: str) -> list[str]:
    """The tokens of a caption: lower case, without punctuation; [] when there are none."""
    found = _without_scanner(caption)
    return _scan(caption) if found is None else found


def one_line(caption: str) -> str:
    """A caption with spaces for its line breaks: what reads captions line by line would take the
    rest of it for the next one. Half a character, which no file can hold, is a question mark."""
    return caption.translate(_BREAKS)


def split_tokens(tokens: Sequence[str]) -> list[str]:
    """Tokens as the words that pycocoevalcap's scorers count: apart at any white space."""
    return " ".join(tokens).split()


def _without_scanner(caption: str) -> list[str] | None:
    """The tokens of a caption of plain words, which hold no white space; None if it has others, or
    if its end may depend on the next line."""
    text = caption.rstrip(" \n")
    if text.endswith("."):
        text = text[:-1]
        if _period_matters(text[text.rfind(" ") + 1 :]):
            return None
    only_letters = text.isascii() and text.replace(" ", "").isalpha()
    if not only_letters:
        if not _PLAIN.fullmatch(text) or ("." in text and _WITH_PERIOD.search(text)):
            return None
        text = text.replace(",", " ").replace(".", " ").replace("'s", " 's")
    found = text.lower().split()
    if _UNDIVIDED.isdisjoint(found):
        return found
    if "'" in text:  # "gonna's" does not come apart
        return None
    return [part for word in found for part in _ASSIMILATED.get(word, (word,))]


def tokens_of_lines(captions: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption, as the Java tool leaves them when it gets all in this order."""
    found = []
    for i, caption in enumerate(captions):
        tokens = _without_scanner(caption)
        if tokens is None:
            following = ""
            if _LOOKS_AHEAD.search(caption.rstrip()[-8:]):  # the pattern is shorter
                following = next((text for text in captions[i + 1 : i + 100] if text.strip()), "")
            tokens = _scan(caption, following)
        found.append(tokens)
    return found


@functools.lru_cache(maxsize=4096)
def _period_matters(word: str) -> bool:
    """Whether a period after the last word of a caption may belong to it, perhaps by what the next
    line begins with ("no.")."""
    return bool(word) and (_LOOKS_AHEAD.search(f"{word}.") is not None or _keeps_period(word))


def _keeps_period(word: str) -> bool:
    """Whether a period after `word` belongs to it: abbreviations, single letters, "x-U.S"."""
    if word.isascii() and word.isalpha() and not _ABBREVIATION.fullmatch(word):
        return False
    tokens = _scan_tokens(word + ".")
    return len(tokens) > 2 or tokens[0].endswith(".")


def _scan(caption: str, following: str = "") -> list[str]:
    tokens = _scan_tokens(caption, following)
    # As COCO does it: one line of text, split at single spaces.
    line = " ".join(tokens).rstrip()
    return [word for word in line.split(" ") if word not in PUNCTUATION] if line else []


def _scan_tokens(caption: str, following: str = "") -> list[str]:
    """The lexer's tokens, lower-cased, punctuation included; `following` is the next line."""
    caption = one_line(caption)
    astral = max(caption, default="") > "\uffff"
    if astral:  # the lexer knows UTF-16 units only
        units = caption.encode("utf-16-le", "surrogatepass")
        caption = "".join(map(chr, memoryview(units).cast("H")))
    text = caption + "\n"
    tokens = []
    at, size = 0, len(text)
    text += one_line(following)
    while at < size:
        rule, end = _longest_match(text, at)
        if rule.tail:
            end = _without_tail(rule, text, at, end)
        if rule.action == "keep":
            tokens.append(text[at:end])
        elif rule.action != "drop":
            token, used = _ACTIONS[rule.action](text[at:end], rule.argument)
            tokens.append(token)
            end = at + used
        at = end
    tokens = [token.lower() for token in tokens]
    return [_from_utf16(token) for token in tokens] if astral else tokens


def _longest_match(text: str, begin: int) -> tuple[Rule, int]:
    """The rule that matches most of the text from `begin` on, and where its match ends."""
    state: State | None = _scanner().start
    end, rule = begin, None
    for i in range(begin, len(text)):
        state = state[text[i]]
        if state is None:
            break
        if state.rule is not None:
            rule, end = state.rule, i + 1
    assert rule is not None  # there is a rule for any single character
    return RULES[rule], end


def _from_utf16(token: str) -> str:
    units = token.encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace").replace("\ufffd", "?")  # Java prints ? for halves


@functools.cache
def _scanner() -> Automaton:
    return Automaton([f"({rule.pattern})({rule.tail})" for rule in RULES], DEFINITIONS)


@functools.cache
def _pattern(pattern: str) -> Automaton:
    return Automaton([pattern], DEFINITIONS)


def warm_up() -> None:
    """Builds the scanner now. `functools.cache` takes no lock, so threads that ask for it at the
    same time would each build one, all under one interpreter lock, before the first of them reads.
    """
    _scan("A man's dogs' bowls aren't here, 1 of 2 (a sign says \"St. Ives\")...")


def _without_tail(rule: Rule, text: str, begin: int, end: int) -> int:
    """Where the token ends in a match of token and tail: the longest token that leaves a tail."""
    tail = _pattern(rule.tail)
    for middle in reversed(_pattern(rule.pattern).ends(text, begin, end)):
        if tail.matches(text, middle, end):
            return middle
    raise AssertionError(f"{rule} matched {text[begin:end]!r} but does not divide")


# Actions: (matched text, the rule's argument) -> (token, how much of the text is used up).
Action = Callable[[str, Any], tuple[str, int]]


def _soft(text: str, _: Any) -> tuple[str, int]:
    """Soft hyphens only mark where a word may break."""
    return text.replace("\u00ad", "") or "-", len(text)


def _split(text: str, back: int) -> tuple[str, int]:
    """Leaves the last characters to be read again: can|not."""
    return text[:-back], len(text) - back


def _again(text: str, _: Any) -> tuple[str, int]:
    """The period belongs to the abbreviation and ends the sentence as well."""
    return text, len(text) - 1


def _acronym(text: str, _: Any) -> tuple[str, int]:
    """As `_again`, but before a new sentence "I." is a word and a period."""
    return (text[:-1] if len(text) == 2 else text), len(text) - 1


def _literal(text: str, token: str) -> tuple[str, int]:
    return token, len(text)


def _dashes(text: str, _: Any) -> tuple[str, int]:
    return "--" if len(text) in (3, 4) else text, len(text)


_SPACES = {" ": "\u00a0"}
_BRACKETS = {"(": "-LRB-", ")": "-RRB-"}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_CURRENCIES = {"\u00a2": "cents", "\u00a3": "#"} | dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$")
_CURLY = (
    dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
    | dict.fromkeys("\u0092\u2019\u203a", "'")
    | dict.fromkeys("\u0093\u201c\u00ab", "``")
    | dict.fromkeys("\u0094\u201d\u00bb", "''")
)


def _translate(table: dict[str, str]) -> Action:
    mapping = str.maketrans(table)
    return lambda text, _: (text.translate(mapping), len(text))


def _quotes(single: str, double: str) -> Action:
    """Straight quotes and their entities become opening or closing ones, curly ones are known."""
    mapping = str.maketrans(_CURLY | {"'": single, '"': double})

    def action(text: str, _: Any) -> tuple[str, int]:
        plain = text.replace("&apos;", "'").replace("&quot;", '"')
        return plain.translate(mapping), len(text)

    return action


_ACTIONS: dict[str, Action] = {
    "soft": _soft,
    "split": _split,
    "again": _again,
    "acronym": _acronym,
    "text": _literal,
    "dashes": _dashes,
    "spaces": _translate(_SPACES),
    "brackets": _translate(_BRACKETS),
    "phone": _translate(_SPACES | _BRACKETS),
    "fraction": _translate(_FRACTIONS),
    "currency": _translate(_CURRENCIES),
    "ampersand": lambda text, _: (re.sub("(?i)&amp;", "&", text), len(text)),
    "left": _quotes("`", "``"),
    "right": _quotes("'", "''"),
}
