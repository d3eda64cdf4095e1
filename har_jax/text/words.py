"""The words of a caption: what rewards, document frequencies and metrics count, by a name.

    ptb          COCO's PTB tokens (`text.ptb`), made for English: the default, and what published
                 figures count
    whitespace   what stands between white space, and nothing else is changed: of captions that
                 another tool has cut into words
    icu          Unicode's word boundaries (UAX 29), with ICU's dictionaries for Chinese, Japanese,
                 Thai and other scripts without spaces; composed (NFC), in lower case, without what
                 has no letter or digit
    package.module:function
                 a user's: text -> list of words

A signature tells words apart that are not the same: it holds ICU's version, and a hash of a user's
function. What was counted in other words is never compared.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from har_jax.errors import UserError, did_you_mean, raised_by
from har_jax.foreign import shortened
from har_jax.plugins import load_function, signature_of
from har_jax.text import ptb

NAMES = ("ptb", "whitespace", "icu")
ICU = "icu4py>=1.2,<2"
"""What `icu` needs, as pip takes it; the extra `words` of this package."""

Split = Callable[[str], list[str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
    """How captions are divided into words. Thread-safe.

    Attributes:
      name: as `--words` takes it.
      signature: what has to agree for two counts to be of the same words.
      split: a caption's words, which hold no white space and are not empty.
    """

    name: str
    signature: str
    split: Split

    def __call__(self, caption: str) -> list[str]:
        """The words of a caption; [] when there are none."""
        return self.split(caption)

    def of_lines(self, captions: Sequence[str]) -> list[list[str]]:
        """The words of each of some captions, as a corpus is scored: of PTB's the tokens that the
        Java tool gives to these lines."""
        if self is PTB:
            return ptb.tokens_of_lines(captions)
        return [self.split(caption) for caption in captions]

    @property
    def mark(self) -> str:
        """Of the signatures of rewards: "ptb", or which words else."""
        return "ptb" if self is PTB else f"words={self.signature}"


PTB = Words("ptb", "ptb", ptb.words)
WHITESPACE = Words("whitespace", "whitespace", lambda caption: ptb.one_line(caption).split())


def find_words(name: str) -> Words:
    """The words of a name, see the module's docstring; a function's module is imported.

    Raises:
      UserError: an unknown name, no such function, or ICU is not installed.
    """
    if name == "icu":
        return _icu()
    known = {"ptb": PTB, "whitespace": WHITESPACE}
    if name in known:
        return known[name]
    if ":" in name:
        return _of_function(name)
    raise UserError(
        f"unknown words {shortened(repr(name))}{did_you_mean(name[:60], NAMES)}; choose from "
        f"{', '.join(NAMES)}, or name a function of yours as package.module:function"
    )


def is_code(name: str) -> bool:
    """Whether words are those of a function: who reads the name in a file must not run it."""
    return ":" in name


def named_in(signature: str) -> Words:
    """The words of a signature of scores, such as `CIDEr-D[...]+words=ptb`; PTB's where it names
    none.

    Raises:
      UserError: they are those of a function, which is not run for being named in a file.
    """
    found = re.search(r"(?:^|\+)words=([^+\[]+)", signature)
    name = found[1] if found else "ptb"
    if is_code(name):
        raise UserError(
            f"these scores count the words of a function, {shortened(repr(name))}, and are not "
            f"computed again; use one of {', '.join(NAMES)}"
        )
    return find_words(name)


@functools.cache
def _icu() -> Words:
    try:
        import icu4py
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise UserError(
            f"words=icu needs ICU, which is not installed ({error}): pip install '{ICU}'"
        ) from error

    def split(caption: str) -> list[str]:
        text = unicodedata.normalize("NFC", ptb.one_line(caption)).lower()
        # A narrow no-break space may stand within a number.
        pieces = (part for piece in WordBreaker(text, "und") for part in piece.split())
        return [piece for piece in pieces if any(map(str.isalnum, piece))]

    return Words("icu", f"icu[{icu4py.icu_version}]", split)


def _of_function(path: str) -> Words:
    function = load_function(path, "words")

    def split(caption: str) -> list[str]:
        try:
            found = function(ptb.one_line(caption))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            told = shortened(repr(caption), 60)
            raise UserError(f"words={path} raised {raised_by(error)}, of {told}") from error
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise UserError(
                f"words={path} returned {shortened(repr(found), 80)}, not a list of texts; return "
                "the words of the caption"
            )
        if " ".join(found).split() != found:
            raise UserError(
                f"words={path} returned {shortened(repr(found), 80)}, in which a word is empty or "
                "holds white space; return words alone"
            )
        return found

    return Words(path, signature_of(path, function), split)
