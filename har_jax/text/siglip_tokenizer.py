"""Captions to the token ids of SigLIP's text towers, as their Hugging Face directories say.

SigLIP has a SentencePiece model of lower-cased texts without punctuation (`tokenizer.json`, or
`spiece.model` alone); SigLIP 2 has Gemma's tokenizer, on lower-cased texts. Both end a text with
EOS and fill it up to one length, on which the text tower relies.
"""

from __future__ import annotations

import os
import pathlib
import re
import string
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from har_jax.errors import UserError
from har_jax.foreign import typed
from har_jax.text import tokenizer_files as files
from har_jax.text.tokenizer import EOS, SMALLEST_VOCABULARY, UNK, byte_level
from har_jax.text.tokenizer_files import PathLike, fingerprint_of

SENTENCEPIECE = "spiece.model"
_SPACE = "\u2581"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SiglipTokenizer:
    """See the module's docstring.

    Attributes:
      context_length: tokens of every row. vocab_size, pad_id, fingerprint.
    """

    def __init__(
        self,
        ids_of: Callable[[list[str]], list[list[int]]],
        *,
        context_length: int,
        vocab_size: int,
        pad_id: int,
        pads_left: bool,
        fingerprint: str,
    ):
        """`ids_of` ends each text, as `tokenizer.json` says, and cuts off what is too long."""
        self._ids_of, self._pads_left = ids_of, pads_left
        self.context_length, self.vocab_size = context_length, vocab_size
        self.pad_id, self.fingerprint = pad_id, fingerprint

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N L"]:
        """Ids [N, context_length]; a text that is too long loses words, never its end."""
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        with files.refusing("the tokenizer cannot write one of the texts"):
            found = self._ids_of(list(texts))
        for row, ids in zip(rows, found, strict=True):
            row[len(row) - len(ids) if self._pads_left else 0 :][: len(ids)] = ids
        return rows


def load_siglip_tokenizer(directory: PathLike, context_length: int) -> SiglipTokenizer:
    """The text tokenizer of a SigLIP directory.

    Raises:
      UserError: no tokenizer there, or one that does not say how texts end or are filled up.
    """
    directory = files.existing(directory)
    config = files.read_json(directory / "tokenizer_config.json")
    kind = str(config.get("tokenizer_class"))
    lowers = typed(config.get("do_lower_case", True), bool, f"{directory}: do_lower_case")

    def plain(text: str) -> str:
        """As these networks were trained: SigLIP without punctuation, either in lower case."""
        if kind.startswith("SiglipTokenizer"):
            return canonical(text, lowers)
        return text.lower()

    tokenizer = files.from_json(directory)
    if tokenizer is None:
        ids_of, token_to_id, size = _sentencepiece(directory, context_length, lowers)
    else:
        files.make_plain(tokenizer)
        tokenizer.enable_truncation(context_length)
        token_to_id = tokenizer.token_to_id
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

        def by_json(texts: list[str]) -> list[list[int]]:
            return [found.ids for found in tokenizer.encode_batch_fast([*map(plain, texts)])]

        ids_of = by_json
    pad = files.spelling(directory, "pad_token") or "</s>"
    pad_id = token_to_id(pad)
    if pad_id is None:
        raise UserError(
            f"the tokenizer of {directory} fills texts up with {pad!r}, which is none of its "
            "tokens; give the tokenizer as it was saved or downloaded"
        )
    side = config.get("padding_side", "left" if kind.startswith("Siglip2Tokenizer") else "right")
    more = (directory / SENTENCEPIECE).read_bytes() if tokenizer is None else b""
    return SiglipTokenizer(
        ids_of,
        context_length=context_length,
        vocab_size=size,
        pad_id=int(pad_id),
        pads_left=side == "left",
        fingerprint=fingerprint_of(directory, context_length, side, kind, more),
    )


def train_siglip_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: PathLike, context_length: int
) -> SiglipTokenizer:
    """Trains a BPE of lower-cased texts, which end in `</s>` and are filled up with it, and writes
    it as transformers and `load_siglip_tokenizer` read it.

    Google's are SentencePiece models; what the text tower needs of one is the end and the filling.

    Raises:
      UserError: `vocab_size` does not hold the bytes and special tokens.
    """
    from tokenizers import normalizers, processors

    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"vocab_size is {vocab_size}; give at least {SMALLEST_VOCABULARY}")
    tokenizer = byte_level([text.lower() for text in texts], vocab_size, [UNK, EOS])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}",
        pair=f"$A {EOS} $B {EOS}",
        special_tokens=[(EOS, tokenizer.token_to_id(EOS))],
    )
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(out_dir / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        **dict.fromkeys(("eos_token", "pad_token"), EOS),
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    files.write_json(out_dir / "tokenizer_config.json", config)
    return load_siglip_tokenizer(out_dir, context_length)


def canonical(text: str, lowers: bool = True) -> str:
    """Without ASCII's punctuation, and with single spaces: SigLIP's captions."""
    text = (text.lower() if lowers else text).translate(_NO_PUNCTUATION)
    return re.sub(r"\s+", " ", text).strip()


def _sentencepiece(
    directory: pathlib.Path, context_length: int, lowers: bool
) -> tuple[Callable[[list[str]], list[list[int]]], Callable[[str], int | None], int]:
    """Of a directory with `spiece.model` alone: texts to ids, a token to its id, how many ids."""
    path = directory / SENTENCEPIECE
    if not path.is_file():
        raise UserError(
            f"no SigLIP tokenizer in {directory}: it has neither tokenizer.json nor "
            f"{SENTENCEPIECE}; copy one of them from the model's Hugging Face directory"
        )
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise UserError(
            f"{directory} has no tokenizer.json, and reading {SENTENCEPIECE} needs sentencepiece: "
            "pip install sentencepiece, or add tokenizer.json"
        ) from error
    with files.refusing(f"{path} is no SentencePiece model"):
        pieces = SentencePieceProcessor(model_file=os.fspath(path))
    unknown, end = (files.spelling(directory, f"{n}_token") for n in ("unk", "eos"))
    unknown, end = unknown or "<unk>", end or "</s>"
    known = {pieces.IdToPiece(i): i for i in range(len(pieces))}
    if end not in known:
        raise UserError(
            f"{path} has no {end!r}, with which a SigLIP ends its texts; give the file as it was "
            "saved or downloaded"
        )
    skipped = len(pieces.EncodeAsPieces(unknown))

    def ids_of(texts: list[str]) -> list[list[int]]:
        # SentencePiece drops a space at the beginning of a text, which the network was trained
        # with: hence a word before it, whose pieces are taken off again. `_SPACE` is one to it.
        plain = (canonical(_SPACE + text.replace(_SPACE, " "), lowers) for text in texts)
        rows = [pieces.EncodeAsIds(unknown + text) for text in plain]
        return [[*row[skipped:][: context_length - 1], known[end]] for row in rows]

    return ids_of, known.get, len(pieces)
