"""A model directory as Hugging Face lays it out: `config.json` and safetensors, found and checked.

Where a directory is expected, a hub name such as `openai/clip-vit-large-patch14` works too
(`interchange/hub.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from har_jax import foreign
from har_jax.errors import UserError
from har_jax.files import followed
from har_jax.foreign import listed, shortened
from har_jax.interchange import hub
from har_jax.interchange.safetensors_file import Tensor, read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FINGERPRINT = ".har_jax_fingerprint.json"
"""The hash of the weights, kept beside them."""
_TICK = 2.0  # seconds: the coarsest clock of a file system


def resolve(name: str | os.PathLike[str]) -> Path:
    """The local directory of `name`: a path, or the name of a model on the Hugging Face hub, with
    `@REVISION` (a commit, tag or branch) where another than the newest is meant.

    Ask once and hand on the path: a name without a revision may mean another snapshot later.
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
        is_file = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # over-long; NUL; `~` of nobody
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"{shortened(repr(os.fspath(name)))} can be no directory's name ({why}); give an "
            "existing Hugging Face model directory, or a hub name"
        ) from None
    if is_file:
        raise UserError(f"{path} is a file; give the directory that holds its config.json")
    on_hub = hub.parsed(name)
    if on_hub is None:
        raise UserError(
            f"no directory {shortened(str(path), 200)}; give an existing Hugging Face model "
            "directory, or a hub name such as openai/clip-vit-large-patch14"
        )
    return hub.fetch(on_hub)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model directory.

    Raises:
      UserError: it is not there, or no JSON object.
    """
    what = "a model directory as it was saved or downloaded"
    return foreign.typed(foreign.read_json(file, what), dict[str, Any], str(file))


def read_config(
    directory: Path, model_types: Collection[str], others: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`config.json`, checked to be of one of `model_types`; `others` says of some what differs."""
    file = directory / "config.json"
    if not file.exists():
        raise UserError(
            f"{directory} has no config.json, so it is no Hugging Face model directory; give the "
            "directory that a model was saved to"
        )
    config = read_json(file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in model_types:
        why = (others or {}).get(model_type) if isinstance(model_type, str) else None
        raise UserError(
            f"{file} describes a model of type {shortened(repr(model_type))} where "
            f"{' or '.join(map(repr, model_types))} is needed{f' ({why})' if why else ''}; give "
            "another directory"
        )
    return config


def model_type_of(directory: Path) -> str | None:
    """What a directory's `config.json` says it is of; None without one."""
    file = directory / "config.json"
    found = read_json(file).get("model_type") if file.exists() else None
    return found if isinstance(found, str) else None


def is_llava(directory: Path) -> bool:
    """Whether a directory is of a whole captioner, of which an encoder or a decoder is a part."""
    return model_type_of(directory) == "llava"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the weights: `model.safetensors`, or the shards of its index."""
    index = directory / INDEX
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        if odd := [name for name in names if not _is_plain(name)]:
            raise UserError(
                f"{index} names {listed(map(repr, odd))}, which is no file in the directory; copy "
                "or download it again"
            )
        files = [directory / name for name in names]
        missing = [f.name for f in files if not f.exists()]
        if missing:
            raise UserError(
                f"{index} names {listed(missing)}, which is not in the directory; copy or "
                "download the missing file(s)"
            )
        return files
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise UserError(
            f"{directory} has {len(found)} safetensors files and no {INDEX} to tell which hold the "
            "model; copy or download the index too"
        )
    patterns = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
    if pickled := sorted(f.name for p in patterns for f in directory.glob(p)):
        raise UserError(
            f"{directory} holds its weights as {listed(pickled)} only; such files are refused "
            "because unpickling runs code from them. Convert once where you trust them: "
            "transformers' AutoModel.from_pretrained(dir).save_pretrained(new_dir)"
        )
    raise UserError(f"{directory} has no {WEIGHTS}; give the directory that a model was saved to")


def _weight_map(index: Path) -> dict[str, str]:
    """{tensor: file} of an index."""
    found = read_json(index).get("weight_map")
    weight_map = foreign.typed(found, dict[str, str], f"{index}: weight_map")
    if not weight_map:
        raise UserError(f"{index} has an empty weight_map; copy or download it again")
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether it can be a file's name in a directory, and in no other."""
    return bool(name) and Path(name).name == name and "\0" not in name and len(name) < 256


def open_weights(directory: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of a directory, unread, and a list of what is wrong with the set of files:
    tensors in more than one file, tensors that the index promises and no file has."""
    tensors: dict[str, Tensor] = {}
    problems = []
    for file in weight_files(directory):
        for name, tensor in read_header(file).items():
            if name in tensors:
                first = tensors[name].file.name
                problems.append(f"{name} is duplicate, in {first} and in {file.name}")
            tensors[name] = tensor
    index = directory / INDEX
    if index.exists():
        for name, file_name in _weight_map(index).items():
            if name not in tensors:
                problems.append(f"{name} is missing from {file_name}, where the index places it")
    return tensors, problems


def weights_fingerprint(directory: Path) -> str:
    """`sha256:...` over names, dtypes, shapes and bytes of all tensors, in order of their names.

    It does not depend on how the tensors are spread over files. Reads everything once (about a
    second per gigabyte), and keeps the answer beside the files, with their sizes and times, where
    that directory may be written; while these do not change, it is not computed again.
    """
    files = weight_files(directory)
    stats = [(f.name, f.stat()) for f in files]
    stamps = [[name, s.st_size, s.st_mtime_ns] for name, s in stats]
    note = directory / FINGERPRINT
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = foreign.read_json(note, "a note of ours")
        if kept["files"] == stamps:
            return str(kept["fingerprint"])
    began = time.time()
    fingerprint = _fingerprint(directory)
    # A file that was written just now may be written again within the same tick of its time.
    if all(s.st_mtime < began - _TICK for _, s in stats):
        with contextlib.suppress(OSError):
            write_json(note, {"files": stamps, "fingerprint": fingerprint})
    return fingerprint


def _fingerprint(directory: Path) -> str:
    digest = hashlib.sha256()
    tensors, _ = open_weights(directory)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype_name} {list(tensor.shape)}\n".encode())
        with tensor.file.open("rb") as f:
            f.seek(tensor.offset)
            left = tensor.nbytes
            while left:
                chunk = f.read(min(left, 1 << 22))
                digest.update(chunk)
                left -= len(chunk)
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def staging(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory to write in, which becomes `directory` when the block ends without an error.

    Nothing half-written ever stands under the final name. `UserError` if that exists already.
    """
    final = followed(directory, replaced=True)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{final} exists already; remove it or choose another name")
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    try:
        os.umask(mask := os.umask(0))
        made.chmod(0o777 & ~mask)  # mkdtemp's 0700 would hide the result from others
        yield made
        if final.exists():
            final.rmdir()
        made.rename(final)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Written beside and renamed, so that the file is old or new and never half."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(file)
