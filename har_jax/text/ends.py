"""How a model's texts begin and end: what the files of its directory say, and what of it is taken.

A text begins with one token, or with none (Qwen's). Several may end it: Llama 3 lists the end of a
text and that of a turn, and Qwen's configuration names another than its tokenizer.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from har_jax.errors import UserError
from har_jax.foreign import Size, shortened, typed
from har_jax.text import tokenizer_files as files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NO_DEFAULT = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")
"""Classes of transformers that know of no BOS where their configuration names none; the others
have a spelling of their own, for which config.json has the id."""

_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


@dataclasses.dataclass(frozen=True)
class Ends:
    """See the module's docstring.

    Attributes:
      bos_id: what a text begins with; None: with its first word.
      eos_ids: any of them ends a text; the first is written at the end of those to be learnt.
      unused: what the files say of them that is not taken, for a person to know.
      odd: what they say that cannot be so.
      chat_template: whether there is one, which means nothing to captions.
    """

    bos_id: int | None
    eos_ids: tuple[int, ...]
    unused: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    chat_template: bool = False


def read_ends(directory: pathlib.Path, tokenizer: Tokenizer) -> Ends:
    """The ends that the files of a directory name, as far as its tokenizer knows them.

    BOS is that of `tokenizer_config.json`, else of `special_tokens_map.json`, else of
    `config.json`; none where the first says so (`bos_token: null`, or `add_bos_token: false` and a
    BOS that is not the end of texts too), or where none names one. The first end is found in the
    same places; to it come those of `generation_config.json` and of `config.json`, if the tokenizer
    has set them apart from words.

    Raises:
      UserError: no end is to be found, or one that is spelt out is not in the tokenizer.
    """
    unused: list[str] = []
    odd: list[str] = []
    bos_id = _begin(directory, tokenizer, unused, odd)
    named = [(f, i) for f in ("generation_config", "config") for i in _numbers(directory, f, "eos")]
    first = _spelt(directory, tokenizer, "eos")
    if first is None:
        ours = [i for file, i in named if file == "config"] or [i for _, i in named]
        if not ours or _token(tokenizer, ours[0]) is None:
            raise _lacking(directory, "eos", None, ours[0] if ours else None)
        first = ours[0]
    eos_ids = [first]
    apart = tokenizer.get_added_tokens_decoder()
    for file, i in dict.fromkeys(named):
        token = _token(tokenizer, i)
        if token is None:
            odd.append(f"{file}.json names the end {i}, which is no id of the tokenizer")
        elif i not in apart and i not in eos_ids:
            shown = shortened(repr(token), 40)
            odd.append(f"{file}.json names the end {i}, which is the word {shown}: it ends nothing")
        else:
            eos_ids.append(i)
    told = tuple(unused), tuple(odd), _has_chat_template(directory)
    return Ends(bos_id, tuple(dict.fromkeys(eos_ids)), *told)


def _begin(
    directory: pathlib.Path, tokenizer: Tokenizer, unused: list[str], odd: list[str]
) -> int | None:
    settings = files.read_json(directory / "tokenizer_config.json")
    bos_id = _spelt(directory, tokenizer, "bos")
    if bos_id is not None:
        if settings.get("add_bos_token") is not False:
            return bos_id
        with files.refusing(f"the tokenizer of {directory} cannot write an empty text"):
            before = tokenizer.encode("").ids
        if bos_id in before or bos_id == _spelt(directory, tokenizer, "eos"):
            return bos_id
        unused.append(f"add_bos_token is false: BOS (id {bos_id}) is not put before a text")
        return None
    named = _numbers(directory, "config", "bos", inner=False)
    if not named:
        return None
    explicit = "bos_token" in settings and not _in_map(directory)
    if explicit or settings.get("tokenizer_class") in _NO_DEFAULT:
        unused.append(f"config.json names a BOS (id {named[0]}), and the tokenizer has none")
        return None
    if _token(tokenizer, named[0]) is None:
        odd.append(f"config.json names the BOS {named[0]}, which is no id of the tokenizer")
        return None
    return named[0]


def _in_map(directory: pathlib.Path) -> bool:
    return "bos_token" in files.read_json(directory / "special_tokens_map.json")


def _spelt(directory: pathlib.Path, tokenizer: Tokenizer, name: str) -> int | None:
    """The id of the token that is spelt out as "bos" or "eos"; None where none is."""
    token = files.spelling(directory, f"{name}_token")
    if token is None:
        return None
    number = tokenizer.token_to_id(token)
    if number is None:
        raise _lacking(directory, name, token, None)
    return number


def _numbers(directory: pathlib.Path, file: str, name: str, *, inner: bool = True) -> list[int]:
    """The ids that a configuration names; `inner`: also those of a LLaVA's decoder."""
    path, key = directory / f"{file}.json", f"{name}_token_id"
    contents = files.read_json(path)
    sections: Iterable[Any] = (contents, contents.get("text_config")) if inner else (contents,)
    found: list[int] = []
    for section in sections:
        if isinstance(section, dict):
            number = typed(section.get(key), Size | list[Size] | None, f"{path}: {key}")
            found += number if isinstance(number, list) else [] if number is None else [number]
    return list(dict.fromkeys(found))


def _token(tokenizer: Tokenizer, number: int) -> str | None:
    return tokenizer.id_to_token(min(number, 2**32 - 1))


def _lacking(
    directory: pathlib.Path, name: str, token: str | None, number: int | None
) -> UserError:
    return UserError(
        f"tokenizer {directory} has no {name} token: give {name}_token in tokenizer_config.json "
        f"(got {shortened(repr(token))}) or {name}_token_id in config.json (got {number!r}) that "
        "it knows"
    )


def _has_chat_template(directory: pathlib.Path) -> bool:
    if files.read_json(directory / "tokenizer_config.json").get("chat_template"):
        return True
    return any((directory / name).exists() for name in _CHAT_TEMPLATES)
