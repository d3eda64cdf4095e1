"""The files of a run's checkpoints: which steps there are, which are whole, which one is meant.

Reads names, JSON and bytes only, without JAX: a check of a configuration must not start it (in a
job of several processes it would be too early).
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from har_jax.errors import UserError, did_you_mean
from har_jax.files import dumps, write_json
from har_jax.foreign import Size, read_typed

log = logging.getLogger(__name__)

METRIC = "CIDEr"
"""What "best" means: the higher `metrics[METRIC]` of a save."""
ITEMS = ("params", "optimizer", "progress")
_SUMS, _SEAL = "sums.json", "crc32"


def _sum(path: pathlib.Path) -> tuple[int, int]:
    """(size, CRC-32) of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def directory_of(run_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Where a run's checkpoints are."""
    return pathlib.Path(run_dir).absolute() / "checkpoints"


def sum_up(step: pathlib.Path) -> None:
    """Notes sizes and sums of a step's arrays, once they are all written."""
    found = (path for item in ("params", "optimizer") for path in (step / item).rglob("*"))
    files = [path for path in found if path.is_file() and path.name != "commit_success.txt"]
    write_json(step / _SUMS, {str(path.relative_to(step)): _sum(path) for path in files}, None)


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the CRC-32 of its text in it."""
    return {**values, _SEAL: zlib.crc32(dumps(dict(values)).encode())}


def unsealed(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object that `sealed` made; those of older versions have no seal.

    Raises:
      UserError: it is not as it was written.
    """
    values = read_typed(path, dict[str, Any], "the checkpoint as it was written")
    seal = values.pop(_SEAL, None)
    if seal is not None and seal != zlib.crc32(dumps(values).encode()):
        raise UserError(f"{path} is not as it was written; copy it again, or take another step")
    return values


class _OfOrbax(msgspec.Struct):
    """What Orbax writes of a step, and asks of it before it looks at any step of a run."""

    item_handlers: dict[str, Any] | str | None = None
    metrics: dict[str, Any] | None = None
    performance_metrics: dict[str, Any] | None = None
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: dict[str, Any] | None = None


def damage(step: pathlib.Path, items: Collection[str] = ITEMS) -> str:
    """What is not as it was written in some items of a step's directory; "" if all is well."""
    what = "the checkpoint as it was written"
    for item in items:
        if not (step / item).is_dir():
            return f"{item} is missing"
    try:
        read_typed(step / "_CHECKPOINT_METADATA", _OfOrbax, what)
        if "progress" in items:
            unsealed(step / "progress" / "metadata")
        if not (step / _SUMS).exists():  # of an older version
            return ""
        known = read_typed(step / _SUMS, dict[str, tuple[Size, Size]], what)
    except UserError as error:
        return str(error)
    known = {name: sums for name, sums in known.items() if name.partition("/")[0] in items}

    def differs(name: str) -> bool:
        try:
            return _sum(step / name) != known[name]
        except (OSError, ValueError):
            return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        wrong = [name for name, yes in zip(known, pool.map(differs, known), strict=True) if yes]
    return f"{wrong[0]} is not as it was written" if wrong else ""


def set_aside(directory: pathlib.Path) -> None:
    """Brings a run to its newest whole step: renames what is newer and damaged, so that it is no
    step any more. Figures of a validation that cannot be read are given up last.

    Raises:
      UserError: there are steps, and none is whole.
    """
    if not directory.is_dir():
        return
    _, unread = _scores(directory)
    found, wrong = None, {}
    numbers = sorted(steps_of(directory), reverse=True)
    for number in numbers:
        wrong[number] = damage(directory / str(number)) or unread.get(number, "")
        if not wrong[number]:
            found = number
            break
    if found is None:
        usable = [n for n in numbers if not damage(directory / str(n))]
        found = usable[0] if usable else None
    if found is None and numbers:
        raise UserError(
            f"no checkpoint in {directory} is whole ({numbers[0]}: {wrong[numbers[0]]}); copy it "
            "again, or remove that directory to begin anew"
        )
    for number in numbers:
        if number > (found or 0):
            _move(directory / str(number), directory / f"damaged-{number}")
            told = "checkpoint %d is damaged (%s): it is now %s, and the run goes on from step %d"
            log.warning(told, number, wrong[number], f"damaged-{number}", found)
        elif number in unread:
            _move(directory / str(number) / "metrics", directory / f"damaged-{number}-metrics")
            told = "the figures of checkpoint %d cannot be read (%s): it will not be the best one"
            log.warning(told, number, unread[number])


def _move(path: pathlib.Path, to: pathlib.Path) -> None:
    shutil.rmtree(to, ignore_errors=True)  # of an earlier damage of the same step
    os.rename(path, to)


def steps_of(directory: pathlib.Path) -> list[int]:
    """The numbers of finished steps; one that is being written has a longer name."""
    names = (path.name for path in directory.iterdir() if path.is_dir())
    return [int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name)]


def finished_steps(run_dir: str | os.PathLike[str]) -> dict[int, float | None]:
    """The steps that were saved, each with its validation CIDEr if it was validated."""
    directory = directory_of(run_dir)
    if not directory.is_dir():
        raise UserError(
            f"{os.fspath(run_dir)} holds no checkpoints (no directory {directory.name!r} in it); "
            "give the --workdir of a run of har_jax.train"
        )
    return _scores(directory)[0]


def _scores(directory: pathlib.Path) -> tuple[dict[int, float | None], dict[int, str]]:
    """({step: CIDEr or None}, {step: why its figures cannot be read})."""
    scores: dict[int, float | None] = {}
    unread: dict[int, str] = {}
    for number in steps_of(directory):
        file = directory / str(number) / "metrics" / "metrics"
        scores[number] = None
        try:
            value = unsealed(file).get(METRIC) if file.parent.exists() else None
        except UserError as error:
            unread[number] = str(error)
            continue
        if isinstance(value, float | int) and math.isfinite(value):
            scores[number] = float(value)
        elif file.parent.exists():
            unread[number] = f"{file} has no {METRIC}"
    return scores, unread


def _by_score(steps: Mapping[int, float | None]) -> list[int]:
    """The validated steps, the best one first."""
    scored = [(value, step) for step, value in steps.items() if value is not None]
    return [step for _, step in sorted(scored, reverse=True)]


def best_whole(directory: pathlib.Path) -> int | None:
    """The validated step with the highest score that is whole; None where there is none."""
    scored = _by_score(_scores(directory)[0])
    return next((number for number in scored if not damage(directory / str(number))), None)


def has_checkpoint(run_dir: str | os.PathLike[str]) -> bool:
    """Whether a run is there that has got as far as its first checkpoint."""
    directory = directory_of(run_dir)
    return directory.is_dir() and bool(steps_of(directory))


def resolve_step(run_dir: str | os.PathLike[str], step: str | int) -> int:
    """`"best"` (by validation CIDEr, or the latest where none was validated), `"latest"` or a
    number, to a step whose parameters are whole.

    Where the one that is meant is damaged, the next best or the next latest is taken, and a line of
    the log says so.

    Raises:
      UserError: there is no such step, it is damaged and was named by its number, or all are.
    """
    steps = finished_steps(run_dir)
    name = os.fspath(run_dir)
    there = ", ".join(map(str, sorted(steps)))
    if not steps:
        raise UserError(
            f"{name} holds no finished checkpoint yet; let the run reach its first one "
            "(config.checkpoint_every)"
        )
    directory = directory_of(run_dir)
    if step in ("best", "latest"):
        unread = _scores(directory)[1] if step == "best" else {}
        for number, why in unread.items():
            log.warning("checkpoint %d of %s cannot be the best: %s", number, name, why)
        newest = sorted(steps, reverse=True)
        first = _by_score(steps) if step == "best" else []
        for number in dict.fromkeys(first + newest):
            wrong = damage(directory / str(number), ("params",))
            if not wrong:
                return number
            log.warning("checkpoint %d of %s is damaged (%s): taking another", number, name, wrong)
        raise UserError(f"no checkpoint of {name} is whole (it has {there}); copy it again")
    if not re.fullmatch(r"[0-9]{1,18}", str(step)):
        raise UserError(
            f"step {step!r}{did_you_mean(str(step), ('best', 'latest'))}: allowed are best, "
            f"latest, or one of {there}"
        )
    if int(step) not in steps:
        raise UserError(f"{name} has no checkpoint of step {step}; it has {there}")
    if wrong := damage(directory / str(step), ("params",)):
        raise UserError(
            f"checkpoint {step} of {name} is damaged ({wrong}); copy it again, or take another of "
            f"{there}"
        )
    return int(step)
