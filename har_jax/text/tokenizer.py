"""Captions to ids and back: the decoder's tokenizer and CLIP's, as Hugging Face directories.

Both rest on the `tokenizers` library, which imports in milliseconds. `transformers` (seconds) is
asked only where a directory has no `tokenizer.json`, such as Mistral-7B's `tokenizer.model`.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from har_jax.errors import UserError
from har_jax.foreign import shortened
from har_jax.text import tokenizer_files as files
from har_jax.text.ends import Ends, read_ends
from har_jax.text.tokenizer_files import PathLike, fingerprint_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"
GPT2_END = "<|endoftext|>"  # stands between texts, so it is BOS and EOS
SMALLEST_VOCABULARY = 256 + 3  # every byte and the special tokens
SMALLEST_GPT2_VOCABULARY = 256 + 1
SMALLEST_CLIP_VOCABULARY = 2 * 256 + 2  # every byte within and at the end of a word


class CaptionTokenizer:
    """The decoder's tokenizer. Thread-safe.

    Attributes:
      bos_id: what a text begins with; None where it begins with its first word.
      eos_ids: any of them ends a caption; `eos_id`, the first, is what `encode` puts at its end.
        There is no padding id: lengths say where a caption ends.
      ends: these, and what the files say of them that is not taken.
      vocab_size: one more than the largest id.
      fingerprint: sha256 of the files that define it, and of bos and the ends.
      wordless: the ids below `vocab_size` that no token has, as ranges.
    """

    def __init__(self, tokenizer: Tokenizer, *, ends: Ends, fingerprint: str):
        # A caption that spells "</s>" is text, and must not end the sentence.
        tokenizer.encode_special_tokens = True
        files.make_plain(tokenizer)
        self._tokenizer = tokenizer
        self.ends, self.fingerprint = ends, fingerprint
        self.bos_id, self.eos_ids, self.eos_id = ends.bos_id, ends.eos_ids, ends.eos_ids[0]
        self._special = frozenset((*self.begin, *ends.eos_ids))
        known = sorted(set(tokenizer.get_vocab(with_added_tokens=True).values()))
        self.vocab_size = known[-1] + 1
        pairs = itertools.pairwise([-1, *known])
        self.wordless = tuple((a + 1, b) for a, b in pairs if b - a > 1)

    @property
    def begin(self) -> tuple[int, ...]:
        """What stands before a text: BOS, or nothing."""
        return () if self.bos_id is None else (self.bos_id,)

    def describe(self) -> str:
        """What it is, in a line of a log."""
        begin = "no BOS" if self.bos_id is None else f"BOS {self.token(self.bos_id)}"
        ends = " or ".join(map(self.token, self.eos_ids))
        chat = "; its chat template is not used" if self.ends.chat_template else ""
        return f"{self.vocab_size:,} tokens, {begin}, ends in {ends}{chat}"

    def encode(self, caption: str) -> list[int]:
        """Ids of the caption, then EOS; no BOS. Outer white space is dropped, all else kept.

        Raises:
          UserError: the tokenizer has no way to write it.
        """
        with files.refusing(f"the tokenizer cannot write {shortened(repr(caption))}"):
            ids = self._tokenizer.encode(caption.strip(), add_special_tokens=False).ids
        return self._ended(ids)

    def encode_batch(self, captions: Sequence[str]) -> list[list[int]]:
        """`encode` of each, faster."""
        stripped = [caption.strip() for caption in captions]
        with files.refusing("the tokenizer cannot write one of the captions"):
            encodings = self._tokenizer.encode_batch_fast(stripped, add_special_tokens=False)
        return [self._ended(encoding.ids) for encoding in encodings]

    def _ended(self, ids: list[int]) -> list[int]:
        """With EOS. Unigram has special tokens among its words, so that a caption that spells one
        would end there, or begin anew: it is left out."""
        if not self._special.isdisjoint(ids):
            ids = [i for i in ids if i not in self._special]
        return [*ids, self.eos_id]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The caption up to the first id that ends it (or to the end, if there is none)."""
        kept = []
        for i in ids:
            if i in self.eos_ids:
                break
            kept.append(int(i))
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()

    def decode_part(self, ids: Iterable[int | np.integer]) -> str:
        """The text of some ids with its outer spaces, as they stand within a longer text; special
        tokens are left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def parts(self, count: int) -> list[str]:
        """`decode_part` of each of the ids 0 to `count` - 1 by itself; "" of those without one."""
        known = min(count, self.vocab_size)
        found = self._tokenizer.decode_batch([[i] for i in range(known)], skip_special_tokens=True)
        return found + [""] * (count - known)

    def to_json(self) -> str:
        """The contents of a `tokenizer.json`."""
        return self._tokenizer.to_str()

    def token(self, token_id: int) -> str:
        """How the vocabulary spells an id (for reports)."""
        return self._tokenizer.id_to_token(token_id) or f"<{token_id}>"


def load_tokenizer(directory: PathLike) -> CaptionTokenizer:
    """The tokenizer of a Hugging Face model directory.

    Reads `tokenizer.json`; without one, what `transformers.AutoTokenizer` makes of the directory.
    How texts begin and end is what `ends.read_ends` finds.

    Raises:
      UserError: no tokenizer there, or an end of texts is not to be found.
    """
    directory = files.existing(directory)
    tokenizer = files.from_json(directory) or files.from_transformers(directory)
    ends = read_ends(directory, tokenizer)
    fingerprint = fingerprint_of(directory, ends.bos_id, *ends.eos_ids)
    return CaptionTokenizer(tokenizer, ends=ends, fingerprint=fingerprint)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: PathLike, *, bos: bool = True
) -> CaptionTokenizer:
    """Trains a byte-level BPE and writes `tokenizer.json` and `tokenizer_config.json`.

    Special tokens stand as in Llama and Mistral: `<unk>` 0, `<s>` 1, `</s>` 2, no padding. Every
    text can be written in it, as all 256 bytes are in the vocabulary.

    Args:
      vocab_size: the most ids there may be; fewer if the texts have no more pairs to merge.
      bos: whether texts begin with one; without, there is no `<s>`, as Qwen's have none.

    Raises:
      UserError: `vocab_size` does not hold the bytes and special tokens.
    """
    from tokenizers import processors

    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"vocab_size is {vocab_size}; give at least {SMALLEST_VOCABULARY}")
    tokenizer = byte_level(texts, vocab_size, [UNK, *([BOS] if bos else []), EOS])
    # Only those who ask for special tokens get BOS, as with Mistral's.
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)]
        )
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(out_dir / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS if bos else None,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    files.write_json(out_dir / "tokenizer_config.json", config)
    return load_tokenizer(out_dir)


def train_gpt2_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: PathLike
) -> CaptionTokenizer:
    """Trains a byte-level BPE in GPT-2's manner and writes it so that `GPT2Tokenizer` reads it too.

    The vocabulary is laid out as OpenAI's: bytes, merges, `<|endoftext|>` last. A text begins with
    its first letter, without a space, and every later word with one.

    Raises:
      UserError: `vocab_size` does not hold the bytes and the special token.
    """
    from tokenizers import AddedToken, processors

    if vocab_size < SMALLEST_GPT2_VOCABULARY:
        raise UserError(f"vocab_size is {vocab_size}; give at least {SMALLEST_GPT2_VOCABULARY}")
    tokenizer = byte_level(texts, vocab_size - 1, [])
    tokenizer.add_special_tokens([AddedToken(GPT2_END, normalized=False, special=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(out_dir / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    files.write_json(out_dir / "vocab.json", tokenizer.get_vocab(with_added_tokens=True))
    _write_merges(out_dir, model["merges"])
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), GPT2_END),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
    files.write_json(out_dir / "tokenizer_config.json", config)
    return load_tokenizer(out_dir)


def byte_level(texts: Iterable[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, of which the special tokens are the first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.strip() for text in texts), trainer)
    return tokenizer


def _write_merges(directory: pathlib.Path, merges: Iterable[Sequence[str]]) -> None:
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------- CLIP


class ClipTokenizer:
    """CLIP's text input: lower-cased BPE between start and end of text, padded to one length.

    Attributes:
      context_length: tokens of every row. vocab_size, bos_id, eos_id, pad_id, fingerprint.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, context_length: int, pad_id: int | None, fingerprint: str
    ):
        files.make_plain(tokenizer)
        self._tokenizer = tokenizer
        self.context_length, self.fingerprint = context_length, fingerprint
        self.bos_id = int(tokenizer.token_to_id(CLIP_BOS) or 0)  # checked by `load_clip_tokenizer`
        self.eos_id = int(tokenizer.token_to_id(CLIP_EOS) or 0)
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text alone: no start, no end, nothing cut off."""
        with files.refusing("the tokenizer cannot write one of the texts"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "N L"]:
        """Ids [N, context_length]; a text that is too long loses words, never its end-of-text."""
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        room = self.context_length - 2
        for row, words in zip(rows, self.words(texts), strict=True):
            ids = [self.bos_id, *words[:room], self.eos_id]
            row[: len(ids)] = ids
        return rows


def load_clip_tokenizer(directory: PathLike) -> ClipTokenizer:
    """The text tokenizer of a CLIP directory (`tokenizer.json`, or `vocab.json` and `merges.txt`).

    Raises:
      UserError: no tokenizer there, or not a CLIP's.
    """
    directory = files.existing(directory)
    tokenizer = files.from_json(directory)
    if tokenizer is None:
        vocab, merges = directory / "vocab.json", directory / "merges.txt"
        if not (vocab.is_file() and merges.is_file()):
            lacking = "neither tokenizer.json nor vocab.json with merges.txt"
            raise UserError(f"no CLIP tokenizer in {directory}: {lacking}")
        pieces = files.read_vocabulary(vocab)
        if lacking := [token for token in (CLIP_BOS, CLIP_EOS) if token not in pieces]:
            raise UserError(f"{vocab} is not a CLIP's: it lacks {' and '.join(lacking)}")
        pairs = files.read_merges(merges)
        with files.refusing(f"{vocab} and {merges.name} are no tokenizer"):
            tokenizer = _clip_pipeline(pieces, pairs)
    if None in (tokenizer.token_to_id(CLIP_BOS), tokenizer.token_to_id(CLIP_EOS)):
        raise UserError(f"the tokenizer of {directory} is not a CLIP's: it lacks {CLIP_EOS}")
    context_length = files.context_length(directory)
    pad = files.spelling(directory, "pad_token")
    return ClipTokenizer(
        tokenizer,
        context_length=min(int(context_length), 4096),
        pad_id=tokenizer.token_to_id(pad) if pad else None,
        fingerprint=fingerprint_of(directory, context_length),
    )


def train_clip_tokenizer(
    texts: Iterable[str], vocab_size: int, out_dir: PathLike, context_length: int = 77
) -> ClipTokenizer:
    """Trains a BPE in CLIP's manner and writes it so that `CLIPTokenizer` reads it too.

    The vocabulary is laid out as OpenAI's: bytes, bytes that end a word, merges, the two special
    tokens last (CLIP's pooling takes the largest id for the end of text).

    Raises:
      UserError: `vocab_size` does not hold the bytes and special tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_CLIP_VOCABULARY:
        raise UserError(f"vocab_size is {vocab_size}; give at least {SMALLEST_CLIP_VOCABULARY}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pattern = _clip_pipeline({CLIP_EOS: 0, CLIP_BOS: 1}, [])
    learner.normalizer, learner.pre_tokenizer = pattern.normalizer, pattern.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        # Named here, the letters that end a word have fixed ids. Otherwise they are numbered in the
        # order of a hash table, and ties between merges would fall anew in every process.
        special_tokens=[letter + "</w>" for letter in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]["merges"]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    known, merges = set(pieces), []
    for left, right in learnt:
        piece = left + right
        if len(pieces) + 2 == vocab_size:
            break
        if piece not in known:
            known.add(piece)
            pieces.append(piece)
        merges.append((left, right))
    vocab = {piece: i for i, piece in enumerate([*pieces, CLIP_BOS, CLIP_EOS])}
    out_dir = pathlib.Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    _clip_pipeline(vocab, merges).save(os.fspath(out_dir / "tokenizer.json"))
    files.write_json(out_dir / "vocab.json", vocab)
    _write_merges(out_dir, merges)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "bos_token": CLIP_BOS,
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), CLIP_EOS),
    }
    files.write_json(out_dir / "tokenizer_config.json", config)
    return load_clip_tokenizer(out_dir)


# As transformers' CLIPTokenizer (tokenization_clip.py) splits; the special tokens are no words.
_CLIP_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def _clip_pipeline(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
    from tokenizers import pre_tokenizers as pre

    rows = list(merges)
    bpe = models.BPE(vocab=vocab, merges=rows, end_of_word_suffix="</w>", unk_token=CLIP_EOS)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre.Split(Regex(_CLIP_WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (CLIP_BOS, CLIP_EOS)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (CLIP_EOS, vocab[CLIP_EOS]), (CLIP_BOS, vocab[CLIP_BOS]), False, False
    )
    return tokenizer
