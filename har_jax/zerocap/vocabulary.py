"""The language model's tokens as texts: what each adds to a sentence, and which are forbidden."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from har_jax.errors import UserError
from har_jax.foreign import parse_json, read_text, typed
from har_jax.text.tokenizer import CaptionTokenizer

_FORBIDDEN = re.compile(r"[0-9]+|[(),!:\n]")
"""The rule that the authors' list of 917 tokens follows, as far as it can be read off: numbers
written without a space before them, and ( ) , ! : and line ends. GPT-2 has 1,000 of those; the list
lacks 83 of the rarer numbers."""


class Vocabulary:
    """See the module's docstring.

    Attributes:
      begin: ids that stand before a text: BOS, or none.
      size: V, of the model, whose last rows may have no token; `known` have one.
      texts: what each id adds to a text, V of them; "" where an id has no token, or a special one.
    """

    def __init__(self, tokenizer: CaptionTokenizer, size: int):
        if tokenizer.vocab_size > size:
            raise UserError(
                f"the language model's tokenizer has {tokenizer.vocab_size} ids, but the model "
                f"only {size}; put the tokenizer of that model into its directory"
            )
        self._tokenizer = tokenizer
        self.size, self.known = size, tokenizer.vocab_size
        self.begin = tokenizer.begin
        self.texts = [_close_gaps(text) for text in tokenizer.parts(size)]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and end."""
        return self._tokenizer.encode(text)[:-1]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids, with no space before punctuation; special tokens are left out."""
        return _close_gaps(self._tokenizer.decode_part(ids))

    def one_id(self, text: str) -> int:
        """The token that a text begins with, as the program reads its end token.

        Raises:
          UserError: the text has no token.
        """
        ids = self.encode(text)
        if not ids:
            raise UserError(f"zerocap.end_token is {text!r}, which has no token; give '.'")
        return ids[0]

    @functools.cached_property
    def no_token_v(self) -> np.ndarray:
        """bool [V]: rows beyond the tokenizer, which mean nothing."""
        return np.arange(self.size) >= self.known

    def forbidden_v(self, which: str) -> np.ndarray:
        """bool [V] of tokens to be made unlikely.

        Args:
          which: "auto" for the rule of this module, "none", or a file of ids: `.npy`, JSON, or one
            number in each line.

        Raises:
          UserError: the file cannot be read, or holds other things than ids of this vocabulary.
        """
        mask = np.zeros(self.size, bool)
        if which == "auto":
            mask[:] = [bool(_FORBIDDEN.fullmatch(text)) for text in self.texts]
        elif which != "none":
            ids = _read_ids(pathlib.Path(which).expanduser())
            wrong = [i for i in ids if not 0 <= i < self.size]
            if wrong:
                raise UserError(
                    f"{which}: token id {wrong[0]} is not one of the language model's, which are "
                    f"0 to {self.size - 1}; give the list of this model's tokens"
                )
            mask[ids] = True
        return mask


_GAPS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def _close_gaps(text: str) -> str:
    """As transformers 4.11, which the program ran on, cleaned up whatever it decoded."""
    for gap in _GAPS:
        text = text.replace(gap, gap.strip())
    return text


def _read_ids(path: pathlib.Path) -> Sequence[int]:
    lacking = "give a .npy, JSON or text file of token ids, or auto, or none"
    try:
        if path.suffix == ".npy":
            # Mapped, so that a header that promises more than the file has takes no memory.
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(values, np.ndarray):
                raise ValueError("it is an archive (.npz), not an array")
        else:
            text = read_text(path, "a file of token ids")
            given = text.split()
            if text.lstrip().startswith("["):
                given = typed(parse_json(text, str(path), "token ids"), list[float], str(path))
            values = np.array(given, np.float64)
        ids = values.astype(np.int64)
        if values.ndim != 1 or values.dtype.kind not in "iuf" or (ids != values).any():
            raise ValueError("it does not hold a list of whole numbers")
    except (OSError, ValueError, TypeError, OverflowError, EOFError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"zerocap.forbidden={path}: {error}; {lacking}") from error
    return ids.tolist()
