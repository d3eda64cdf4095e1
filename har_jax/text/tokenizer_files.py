"""The files of a tokenizer's Hugging Face directory, read and checked."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from har_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PathLike = str | os.PathLike[str]

DEFINING = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
"""What decides a tokenizer's ids; where there is the first, the others do not matter."""


def existing(directory: PathLike) -> pathlib.Path:
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise UserError(f"no directory {directory}; give a Hugging Face directory with a tokenizer")
    return directory


def from_json(directory: pathlib.Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise UserError(f"{path} is not a tokenizer: {error}") from error


def from_transformers(directory: pathlib.Path) -> Tokenizer:
    if not any((directory / name).is_file() for name in DEFINING):
        raise UserError(
            f"no tokenizer in {directory}: it has none of {', '.join(DEFINING)}; copy them from "
            "the model's Hugging Face directory"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UserError(
            f"{directory} has no tokenizer.json, and reading its other files needs `transformers`: "
            "pip install transformers, or save the tokenizer as tokenizer.json"
        ) from error
    try:
        loaded: Any = AutoTokenizer.from_pretrained(os.fspath(directory), local_files_only=True)
    except Exception as error:  # whatever the many tokenizer classes raise
        raise UserError(
            f"transformers cannot read the tokenizer of {directory}: {error}"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the tokenizer of {directory} ({type(loaded).__name__}) has no fast version; "
            "save it as tokenizer.json"
        )
    model = directory / "tokenizer.model"
    return _by_score(backend, model) if model.is_file() else backend


def _by_score(tokenizer: Tokenizer, model: pathlib.Path) -> Tokenizer:
    """Its merges in the order of SentencePiece's scores, as SentencePiece itself merges.

    transformers 5 orders them by id. Mistral's runs of spaces have low ids and the lowest scores:
    by id, "a  dog" would become `▁a ▁▁ dog` where the model was trained on `▁a ▁ ▁dog`.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    contents = json.loads(tokenizer.to_str())
    if contents["model"].get("type") != "BPE":
        return tokenizer
    pieces = SentencePieceProcessor(model_file=os.fspath(model))
    scores = {pieces.IdToPiece(i): pieces.GetScore(i) for i in range(len(pieces))}
    merges = contents["model"]["merges"]
    contents["model"]["merges"] = sorted(merges, key=lambda pair: -scores.get("".join(pair), -1e9))
    return Tokenizer.from_str(json.dumps(contents))


def fingerprint_of(directory: pathlib.Path, *more: object) -> str:
    digest = hashlib.sha256(repr(more).encode())
    names = DEFINING[:1] if (directory / DEFINING[0]).is_file() else DEFINING[1:]
    for name in names:
        if (directory / name).is_file():
            digest.update(name.encode() + (directory / name).read_bytes())
    return digest.hexdigest()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
