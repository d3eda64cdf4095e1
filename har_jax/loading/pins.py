"""Names of the hub in a configuration, each with the commit that it means.

A branch moves; a run must not. When a run begins, `owner/name` becomes `owner/name@COMMIT` in its
`config.json`, and whatever reads a run (resuming, SCST, evaluate, export) reads the very same
files. What was asked for stands in `run.json`, `"hub": {"owner/name": COMMIT}`, so that the command
that began a run resumes it, and one that starts from it names its models as it did.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from har_jax.config import Config
from har_jax.errors import UserError
from har_jax.interchange import hub
from har_jax.interchange.hub import HubName
from har_jax.training.run_dir import CONFIG, INFO, read_run

KEYS = ("model.encoder", "model.lm", "init_from", "eval.clip_score", "scst.reward_clip")
"""Of a configuration, those that may name a model of the hub."""

_Values = Mapping[str, Any]  # of a configuration, by their dotted keys
_Run = tuple[_Values, Mapping[str, str]]  # and what names meant that were asked for


def pin(
    config: Config, workdir: str | os.PathLike[str], *, strict: bool = True
) -> tuple[Config, dict[str, str]]:
    """A configuration whose names of the hub have their commits, and {name as given: commit}.

    A commit is that of the run in `workdir`, if one has begun there; else that of the run which
    `init_from` names; else what the name means now.

    Args:
      strict: False leaves a name that means nothing as it is, for what else may be wrong with it
        to be told first.

    Raises:
      UserError: the hub has no such model, or cannot be reached and the cache has none.
    """
    values: dict[str, Any] = dict(flatten_dict(config.to_dict(), sep="."))
    names = {key: name for key in KEYS if values[key] and (name := hub.named(values[key]))}
    if _is_run_below_a_directory(names.get("init_from")):
        del names["init_from"]
    if not names:
        return config, {}
    begun, parent = _run(workdir), _run(config.init_from)
    found: dict[HubName, str] = {}
    for name in names.values():
        if name.commit:
            found[name] = str(name)
        elif begun and (then := _then(name, begun)):  # of an older version: without a commit
            found[name] = then
        elif name not in found:
            then = parent and _then(name, parent)
            try:
                found[name] = hub.pinned(then or str(name))
            except UserError:
                if strict:
                    raise
                found[name] = str(name)
    values |= {key: found[name] for key, name in names.items()}
    commits = {str(name): hub.parsed(value) for name, value in found.items()}
    told = {name: there.commit for name, there in commits.items() if there and there.commit}
    asked = {name: commit for name, commit in told.items() if not name.endswith(f"@{commit}")}
    return Config.from_dict(unflatten_dict(values, sep=".")), asked


def _is_run_below_a_directory(name: HubName | None) -> bool:
    """`runs/mle` where there is a directory `runs`: a run is meant, though it is not there."""
    return name is not None and os.path.isdir(name.repo.partition("/")[0])


def _run(directory: str | os.PathLike[str]) -> _Run | None:
    place = pathlib.Path(directory)
    if not directory or not all(os.path.lexists(place / name) for name in (CONFIG, INFO)):
        return None
    config, info = read_run(place)
    return flatten_dict(config.to_dict(), sep="."), info.get("hub") or {}


def _then(name: HubName, run: _Run) -> str | None:
    """What a run took a name for; None if it has nothing of that name."""
    values, asked = run
    if commit := asked.get(str(name)):
        return str(HubName(name.repo, commit))
    for key in KEYS:
        there = hub.parsed(values.get(key) or "")
        if there and there.repo == name.repo and name.revision in (None, there.revision):
            return str(there)
    return None
