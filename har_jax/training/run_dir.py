"""The run directory: its configuration, where it came from, and whether it may be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import msgspec
from flax.traverse_util import flatten_dict

from har_jax.config import Config, may_change
from har_jax.errors import UserError, one_line
from har_jax.files import followed, lock, write_json
from har_jax.foreign import read_typed
from har_jax.version import __version__

log = logging.getLogger(__name__)

CONFIG, INFO, LOCK = "config.json", "run.json", ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""


class _Parent(msgspec.Struct):
    run: str
    step: int
    stage: str | None = None


class _Info(msgspec.Struct):
    """What is read of `run.json`; all of it may be missing in runs of older versions."""

    stage: str | None = None
    parent: _Parent | None = None
    base: dict[str, dict[str, Any]] = {}
    hub: dict[str, str] = {}
    data: dict[str, Any] | None = None
    reward_signature: str | None = None
    rollbacks: list[dict[str, Any]] = []


def read_run(run: str | os.PathLike[str]) -> tuple[Config, dict[str, Any]]:
    """`config.json` and `run.json` of a run directory.

    Raises:
      UserError: there is no such directory, or it is no run.
    """
    path = pathlib.Path(run)
    if not path.is_dir():
        raise UserError(
            f"there is no run directory {str(run)!r}; give the --workdir of a run of har_jax.train"
        )
    for name in (CONFIG, INFO):
        if not os.path.lexists(path / name):
            raise UserError(
                f"{str(run)!r} is not a run of har_jax.train: it has no {name}; give the --workdir "
                "of one"
            )
    return _read_config(path), _read_info(path)


def begun_with(workdir: str | os.PathLike[str]) -> Config:
    """The configuration of a run that is to be resumed without naming another.

    Raises:
      UserError: no run has begun there.
    """
    path = pathlib.Path(workdir)
    if not os.path.lexists(path / CONFIG):
        raise UserError(
            f"--config is not given, and no run has begun in --workdir={workdir} (it has no "
            f"{CONFIG}); give --config=FILE[:PRESET], such as --config=mle:tiny"
        )
    return _read_config(path)


def _read_config(path: pathlib.Path) -> Config:
    """Through `Config`: a key that an older version did not have yet stands at its default."""
    values = read_typed(path / CONFIG, dict[str, Any], "config.json as the run left it")
    try:
        return Config.from_dict(values)
    except UserError as error:
        raise UserError(f"{path / CONFIG}: {error}") from None


def _read_info(path: pathlib.Path) -> dict[str, Any]:
    """`run.json`, whose parts are of the kinds that are read of them."""
    what = "run.json as the run left it"
    read_typed(path / INFO, _Info, what)
    info = read_typed(path / INFO, dict[str, Any], what)
    base = info.get("base") or {}
    if "clip" in base:  # what the encoder was called once
        info["base"] = {"encoder": base["clip"], **{k: v for k, v in base.items() if k != "clip"}}
    return info


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """The run directory, made if need be, for this process alone. A kill lets it go.

    Raises:
      UserError: another process trains there, or no directory can be there.
    """
    path = followed(workdir)
    made = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--workdir={workdir} is, or is below, a file; give a directory") from None
    file = path / LOCK
    try:
        held = lock(file)
    except BlockingIOError:
        raise UserError(
            f"another training is at work in --workdir={workdir} ({_holder(file)}); wait for it, "
            "end it, or give another --workdir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s cannot be locked (%s): start no other training there", path, error.strerror)
        yield
        return
    os.ftruncate(held, 0)
    os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(held)
        with contextlib.suppress(OSError):  # nothing came of it
            for place in made:
                place.rmdir()


def _holder(file: pathlib.Path) -> str:
    try:
        return one_line(file.read_text(errors="replace"))[:100] or "an unknown process"
    except OSError:
        return "an unknown process"


def run_info(
    config: Config,
    *,
    base: Mapping[str, Any],
    parent: Mapping[str, Any] | None = None,
    reward_signature: str | None = None,
    parameters: Mapping[str, int] | None = None,
    data: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    hub: Mapping[str, str] | None = None,
    spec: str = "",
) -> dict[str, Any]:
    """What `run.json` says."""
    return {
        "stage": config.stage,
        "config": spec,
        "parent": dict(parent) if parent else None,
        "started_from": dict(start) if start else None,
        "base": dict(base),
        "hub": dict(hub or {}),  # see loading/pins.py
        "data": dict(data) if data else None,
        "lora": dataclasses.asdict(config.model.lora) if config.model.lora.rank else None,
        "reward_signature": reward_signature,
        "parameters": dict(parameters or {}),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "har_jax": __version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }


def check_run(workdir: str | os.PathLike[str], config: Config, info: Mapping[str, Any]) -> bool:
    """Whether a run is there already. Nothing is written.

    Raises:
      UserError: the directory holds something else, or a run that these settings do not continue.
    """
    path = pathlib.Path(workdir)
    if not os.path.lexists(path / CONFIG):
        # A kill before the first lines of a run were written leaves these; begin again.
        begun = (LOCK, INFO)
        names = [p.name for p in path.iterdir()] if path.is_dir() else []
        if any(name not in begun and not name.endswith(".partial") for name in names):
            raise UserError(
                f"--workdir={workdir} holds files but is not a run of har_jax.train; give an empty "
                "or a new directory"
            )
        return False
    before = _read_config(path)
    old, new = (flatten_dict(c.to_dict(), sep=".") for c in (before, config))
    changed = [
        f"config.{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not may_change(key)
    ]
    if changed:
        raise UserError(
            f"--workdir={workdir} is a run with another configuration: {'; '.join(changed)}. "
            "Resume it with the same settings, or give a new --workdir"
        )
    known = _read_info(path)
    for key in ("base", "reward_signature", "data"):
        old_version = key == "data" and known.get(key) is None
        if not old_version and _fingerprints(known.get(key)) != _fingerprints(info.get(key)):
            raise UserError(
                f"--workdir={workdir} was begun with another {key.replace('_', ' ')}: "
                f"{known.get(key)} then, {info.get(key)} now; give a new --workdir"
            )
    return True


def open_run(workdir: str | os.PathLike[str], config: Config, info: dict[str, Any]) -> bool:
    """Creates the run directory, or continues a run; True when it was there before.

    Call it on process 0 only.

    Raises:
      UserError: see `check_run`.
    """
    path = pathlib.Path(workdir)
    resumed = check_run(workdir, config, info)
    if not resumed:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / INFO, info)
    write_json(path / CONFIG, config.to_dict())
    return resumed


def note(workdir: str | os.PathLike[str], **values: Any) -> None:
    """Sets keys of `run.json`, such as what happened to a run on its way. Process 0 only."""
    path = pathlib.Path(workdir)
    before = _read_info(path)
    if before != before | values:
        write_json(path / INFO, before | values)


def _fingerprints(value: Any) -> Any:
    """What must not change about the base: not the paths and revisions, which may move."""
    if isinstance(value, dict):
        return {k: _fingerprints(v) for k, v in value.items() if k not in ("path", "revision")}
    return value
