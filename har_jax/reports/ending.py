"""The last lines of `train`: its best step with its scores, its report, and what to do next."""

from __future__ import annotations

import logging
import os
import pathlib
import shlex
from typing import Any

from har_jax import config_file
from har_jax.data.dataset import split_names
from har_jax.errors import UserError, one_line, raised_by
from har_jax.reports.page import flat, validated, write_report
from har_jax.reports.run_view import RunView, read_view

log = logging.getLogger(__name__)

_SHARED = ("data.", "model.", "mesh.", "eval.clip_score")
"""Settings of an MLE run that the SCST run which starts from it needs as well."""


def end_of_run(run_dir: str, *, finished: bool = True) -> None:
    """Writes a run's report and logs what there is to say. Whatever goes wrong is one line of the
    log, since the run itself is safe.

    Args:
      finished: the run is at its last step; otherwise there is no next command.
    """
    try:
        path = write_report(run_dir)
        run = read_view(run_dir)
        best = validated(run.best)
        unknown = f"not known: none was validated; the latest is step {run.reached}"
        log.info("  best        %s", best or unknown)
        log.info("  report      %s", path)
        if finished:
            log.info("  next        %s", next_command(run))
    except Exception as error:
        told = one_line(raised_by(error))
        log.warning(
            "the report of %s was not written (%s); python -m har_jax.report %s tries again",
            *(run_dir, told, shlex.quote(run_dir)),
        )


def next_command(run: RunView) -> str:
    """After MLE the SCST run that starts from it, of the same preset, on the same data and models;
    then `evaluate`."""
    name = str(run.path)
    words = ["python", "-m"]
    if run.stage == "mle":
        other = _other_stage(run.info.get("config", ""))
        words += ["har_jax.train", f"--config={other}"]
        words += [f"--workdir={_other_run(run.path)}", f"--config.init_from={name}"]
        words += [f"--config.{key}={value}" for key, value in _shared(run, other)]
    else:
        split = _to_score(run)
        words += ["har_jax.evaluate", f"--checkpoint={name}"]
        words += [f"--split={split}"] if split != "test" else []
        words += [f"--out={run.path / 'eval' / split}"]
    return shlex.join(words)


def _shared(run: RunView, spec: str) -> list[tuple[str, Any]]:
    """The settings of data and models in which a run is not as `spec` has them."""
    try:
        theirs = dict(flat(config_file.load(spec, {"init_from": str(run.path)}).to_dict()))
    except UserError:
        return []
    own = ((key, value) for key, value in flat(run.config) if key.startswith(_SHARED))
    return [(key, value) for key, value in own if key in theirs and theirs[key] != value]


def _other_stage(spec: str) -> str:
    """`configs/mle.py:tiny` to `configs/scst.py:tiny`, where that is; else the presets' name."""
    file, colon, preset = spec.partition(":")
    place = pathlib.PurePath(file)
    if place.stem == "mle":
        other = str(place.with_stem("scst"))
        if place.suffix != ".py" or os.path.exists(other):
            return other + colon + preset
    return "scst"


def _other_run(path: pathlib.Path) -> pathlib.Path:
    """`runs/mle-0` to `runs/scst-0`."""
    name = path.name
    return path.with_name(name.replace("mle", "scst") if "mle" in name else f"{name}-scst")


def _to_score(run: RunView) -> str:
    """The test split, or that of validation where the dataset has no test split."""
    try:
        names = split_names(run.setting("data.dir", ""))
    except UserError:
        return "test"
    other = run.setting("data.val_split") or "test"
    return "test" if "test" in names else str(other)
