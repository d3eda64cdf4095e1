"""The run directory: its configuration, where it came from, and whether it may be resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import time
from collections.abc import Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from har_jax.config import Config
from har_jax.errors import UserError
from har_jax.files import write_json
from har_jax.version import __version__

_MAY_CHANGE = (
    *("steps", "log_every", "checkpoint_every", "mesh", "eval", "guards"),
    *("data.cache_images", "scst.doctor"),
)
"""Settings that a resumed run may change: how long and how observed, not what is learned."""


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
    values = []
    for name in ("config.json", "run.json"):
        try:
            values.append(json.loads((path / name).read_text()))
        except FileNotFoundError:
            raise UserError(
                f"{str(run)!r} is not a run of har_jax.train: it has no {name}; give the --workdir "
                "of one"
            ) from None
        except ValueError as error:
            raise UserError(f"{path / name} is not valid JSON: {error}") from None
    return Config.from_dict(values[0]), values[1]


def run_info(
    config: Config,
    *,
    base: Mapping[str, Any],
    parent: Mapping[str, Any] | None = None,
    reward_signature: str | None = None,
    parameters: Mapping[str, int] | None = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `run.json` says."""
    return {
        "stage": config.stage,
        "parent": dict(parent) if parent else None,
        "base": dict(base),
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
    if not (path / "config.json").exists():
        if path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"--workdir={workdir} holds files but is not a run of har_jax.train; give an empty "
                "or a new directory"
            )
        return False
    # Through Config: a key that an older version did not have yet stands at its default.
    before = Config.from_dict(json.loads((path / "config.json").read_text()))
    old, new = (flatten_dict(c.to_dict(), sep=".") for c in (before, config))
    changed = [
        f"config.{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"--workdir={workdir} is a run with another configuration: {'; '.join(changed)}. "
            "Resume it with the same settings, or give a new --workdir"
        )
    known = json.loads((path / "run.json").read_text())
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
        write_json(path / "run.json", info)
    write_json(path / "config.json", config.to_dict())
    return resumed


def note(workdir: str | os.PathLike[str], **values: Any) -> None:
    """Sets keys of `run.json`, such as what happened to a run on its way. Process 0 only."""
    path = pathlib.Path(workdir) / "run.json"
    before = json.loads(path.read_text())
    if before != before | values:
        write_json(path, before | values)


def _fingerprints(value: Any) -> Any:
    """What must not change about the base: not the paths, which may move."""
    if isinstance(value, dict):
        return {k: _fingerprints(v) for k, v in value.items() if k != "path"}
    return value
