"""The files of a tokenizer's Hugging Face directory, read and checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from har_jax import foreign
from har_jax.errors import UserError
from har_jax.foreign import Size, shortened, typed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PathLike = str | os.PathLike[str]

DEFINING = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
"""What decides a tokenizer's ids; where there is the first, the others do not matter."""


def existing(directory: PathLike) -> pathlib.Path:
    directory = pathlib.Path(directory)
    with contextlib.suppress(OSError, ValueError):  # an over-long name, or one with NUL in it
        if directory.is_dir():
            return directory
    told = shortened(os.fspath(directory), 200)
    raise UserError(f"no directory {told}; give a Hugging Face directory with a tokenizer")


def from_json(directory: pathlib.Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    foreign.read_json(path, "a tokenizer.json as it was saved or downloaded")
    with refusing(f"{path} is not a tokenizer"):
        return Tokenizer.from_file(os.fspath(path))


def make_plain(tokenizer: Tokenizer) -> None:
    """Takes away what somebody's training left in the file and what would cut texts, fill them up,
    or split them by chance (`dropout` of BPE)."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns whatever `tokenizers` and `transformers` raise into a `UserError` of one line, which
    begins with `what`: bare `Exception`s, and panics of Rust, which are not even that."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what}: {shortened(first, 300)}; give the tokenizer as it was saved or downloaded"
        ) from error


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
    with refusing(f"transformers cannot read the tokenizer of {directory}"):
        loaded: Any = AutoTokenizer.from_pretrained(
            os.fspath(directory), local_files_only=True, trust_remote_code=False
        )
        backend = getattr(loaded, "backend_tokenizer", None)
        model = directory / "tokenizer.model"
        if backend is not None:
            return _by_score(backend, model) if model.is_file() else backend
    raise UserError(
        f"the tokenizer of {directory} ({type(loaded).__name__}) has no fast version; save it as "
        "tokenizer.json"
    )


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


def read_json(path: pathlib.Path, kind: Any = dict[str, Any]) -> Any:
    """The contents of a JSON file as `kind`; those of an empty one where there is none."""
    if not path.exists():
        return {}
    return foreign.read_typed(path, kind, "the files of a tokenizer as they were saved")


def spelling(directory: pathlib.Path, key: str) -> str | None:
    """How a special token is written: as `tokenizer_config.json` says, else the map beside it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(directory / name).get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if found := typed(token, str | None, f"{directory / name}: {key}"):
            return found
    return None


_Length = Annotated[int, Meta(ge=3)] | Annotated[float, Meta(ge=3, le=1e300)]
"""Of a text with its start and end; "as long as you like" is written as 1e30."""


def context_length(directory: pathlib.Path) -> int | float:
    """How many tokens a CLIP's texts have."""
    file, other = directory / "config.json", directory / "tokenizer_config.json"
    text = typed(read_json(file).get("text_config"), dict[str, Any] | None, f"{file}: text_config")
    for length in (
        (text or {}).get("max_position_embeddings"),
        read_json(other).get("model_max_length"),
    ):
        if found := typed(length, _Length | None, f"the length of a text, of {directory}"):
            return found
    return 77


def read_vocabulary(path: pathlib.Path) -> dict[str, int]:
    """`vocab.json`: the id of each piece."""
    return read_json(path, dict[str, Size])


def read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
    """`merges.txt`: two pieces a line."""
    lines = foreign.read_text(path, "the merges of a tokenizer").split("\n")
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not (number == 1 and line.startswith("#version")):
            pieces = line.split()
            if len(pieces) != 2:
                raise UserError(
                    f"{path} line {number} is {shortened(repr(line))}, which is not two pieces "
                    "with a space between them; copy or download it again"
                )
            pairs.append((pieces[0], pieces[1]))
    return pairs


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
