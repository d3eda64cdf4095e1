"""What a run tells: `metrics.jsonl`, `samples.jsonl`, the console, TensorBoard files, and others
(`trackers.py`).

A `RunLog` passes what it is told to its `Logger`s. After a restore `truncate_after(step)` removes
what lies beyond the restored step, for these steps are done again: a resumed run's log reads like
an unbroken one's.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from tensorboardX import SummaryWriter

from har_jax.errors import UserError
from har_jax.files import dumps, parse_line, write_bytes

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
TENSORBOARD = "tensorboard"

# Figure → (label, format, unit), in the order of the console line. Others are only filed.
_CONSOLE: dict[str, tuple[str, str, str]] = {
    "loss": ("loss", "8.4f", ""),
    "accuracy": ("accuracy", "5.1%", ""),
    "reward": ("reward", "6.3f", ""),
    "reward_greedy": ("greedy", "6.3f", ""),
    "CIDEr": ("CIDEr", "6.3f", ""),
    "Bleu_4": ("BLEU-4", "6.3f", ""),
    "ROUGE_L": ("ROUGE-L", "6.3f", ""),
    "CLIPScore": ("CLIPScore", "6.3f", ""),
    "entropy": ("entropy", "5.2f", " nat"),
    "length": ("length", "4.1f", " tok"),
    "mean_length": ("length", "4.1f", " words"),
    "bad_end_rate": ("bad ends", "5.1%", ""),
    "repetition_rate": ("repeats", "5.1%", ""),
    "grad_norm": ("|grad|", "6.2f", ""),
    "learning_rate": ("lr", "7.1e", ""),
    "images_per_second": ("", "6.0f", " img/s"),
    "tokens_per_second": ("", "7.0f", " tok/s"),
    "data_wait": ("waiting for data", "3.0%", ""),
    "reward_share": ("reward", "3.0%", " of the time"),
    "mfu": ("MFU", "5.1%", ""),
    "memory_peak_gib": ("memory", "5.1f", " GiB"),
}


@runtime_checkable
class Logger(Protocol):
    """Where a run's figures go. What a subclass does not define does nothing."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars of a step, such as `{"train/loss": 2.1}`."""

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        """Something that happened, such as a guard's trip."""

    def samples(self, step: int, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Captions: each row has `image_id`, `caption`, `references` and whatever else."""

    def truncate_after(self, step: int) -> None:
        """Forgets what was logged for later steps, which will be done again."""

    def forget_validation(self, step: int) -> None:
        """Forgets the validation of a step, which will be done again."""

    def flush(self) -> None:
        """Brings to disk what is held back."""

    def close(self) -> None:
        """Closes all files; a later `write` opens them again."""


class JsonLines(Logger):
    """`metrics.jsonl` and `samples.jsonl`. Every line is one unbuffered write, so a run that is
    killed loses nothing but at most one line, which is cut off."""

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self._files: dict[str, io.FileIO] = {}

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        self._append(METRICS, {"step": step, "time": round(time.time(), 3), **figures})

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        self.write(step, {"event": dict(fields)})

    def samples(self, step: int, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._append(SAMPLES, {"step": step, "split": split, **row})

    def truncate_after(self, step: int) -> None:
        """Drops later lines, and lines that a kill cut off."""
        self.close()
        for name in (METRICS, SAMPLES):
            path = self._run_dir / name
            before = _content(path)
            rows = [(line, parse_line(line)) for line in before.splitlines()]
            after = b"".join(line + b"\n" for line, row in rows if row and row["step"] <= step)
            if after != before:
                write_bytes(path, after)

    def forget_validation(self, step: int) -> None:
        """Drops what was logged of a step from its validation figures on, and its samples."""
        self.close()
        for name in (METRICS, SAMPLES):
            path = self._run_dir / name
            lines = _content(path).splitlines(keepends=True)
            rows = [parse_line(line) for line in lines]
            of_step = [row is not None and row["step"] == step for row in rows]
            began = [
                i
                for i, row in enumerate(rows)
                if of_step[i] and (name == SAMPLES or any(k.startswith("val/") for k in row or {}))
            ]
            if began:
                kept = [x for i, x in enumerate(lines) if i < began[0] or not of_step[i]]
                write_bytes(path, b"".join(kept))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            path = self._run_dir / name
            if path.exists():  # a line after one that was cut off would be lost with it
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
            self._files[name] = open(path, "ab", buffering=0)  # noqa: SIM115
        self._files[name].write((dumps(row) + "\n").encode())


def _content(path: pathlib.Path) -> bytes:
    """A log as it is; nothing where there is none.

    Raises:
      UserError: it is no file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path} is a link to nowhere; remove it") from None
        return b""
    except IsADirectoryError:
        raise UserError(
            f"{path} is a directory; move it away: the run's log stands there"
        ) from None


class TensorBoard(Logger):
    """Event files, which are append-only: what is truncated is marked as to be forgotten."""

    def __init__(self, run_dir: pathlib.Path):
        self._directory = run_dir / TENSORBOARD
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self._events is None:
            self._events = SummaryWriter(
                str(self._directory),
                purge_step=self._purge_step,
                flush_secs=30,
                # Files are named by the second: without this a quick resume overwrites the last.
                filename_suffix=f".{time.time_ns()}",
            )
            self._purge_step = None
        for name, value in figures.items():
            self._events.add_scalar(name, value, step)

    def truncate_after(self, step: int) -> None:
        self.close()
        if any(self._directory.glob("events.*")):
            self._purge_step = step + 1

    def flush(self) -> None:
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


class Console(Logger):
    """One line for each `write`."""

    def __init__(self, total_steps: int | None = None):
        self._total_steps = total_steps

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        log.info("%s", console_line(step, figures, self._total_steps))


class RunLog(Logger):
    """The loggers of a run as one: JSON lines, the console, and others.

    Args:
      run_dir: created when something is written.
      enabled: whether this process writes; None: process 0 does. False: every method does nothing.
      total_steps: for the console's `step 120/600`.
      others: more loggers, such as those of `trackers.make_trackers`.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        enabled: bool | None = None,
        total_steps: int | None = None,
        others: Sequence[Logger] = (),
    ):
        path = pathlib.Path(run_dir)
        self.loggers: list[Logger] = []
        if jax.process_index() == 0 if enabled is None else enabled:
            self.loggers = [JsonLines(path), Console(total_steps), *others]

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in figures.items()}
        for logger in self.loggers:
            logger.write(int(step), values)

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        for logger in self.loggers:
            logger.event(int(step), fields)

    def samples(self, step: int, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        for logger in self.loggers:
            logger.samples(int(step), split, rows)

    def truncate_after(self, step: int) -> None:
        for logger in self.loggers:
            logger.truncate_after(step)

    def forget_validation(self, step: int) -> None:
        for logger in self.loggers:
            logger.forget_validation(step)

    def flush(self) -> None:
        for logger in self.loggers:
            logger.flush()

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


def console_line(step: int, figures: Mapping[str, float], total: int | None = None) -> str:
    """`step  120/600  train  loss   2.3456  accuracy 51.2%    850 img/s`: columns stay aligned."""
    of_total = f"{step:>{len(str(total))}}/{total}" if total else f"{step:>7}"
    groups: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        group, _, leaf = name.rpartition("/")
        groups.setdefault(group, {})[leaf] = value
    parts = [f"step {of_total}"]
    for group, values in groups.items():
        shown = [
            f"{label} {value:{spec if math.isfinite(value) else spec.split('.')[0]}}{unit}".strip()
            for key, (label, spec, unit) in _CONSOLE.items()
            if (value := values.get(key)) is not None
        ]
        if group.endswith("/reward_part"):
            shown = [f"{name} {value:.3f}" for name, value in values.items()]
        elif group and shown:
            parts.append(f"{group:<5}")
        parts += shown
    return "  ".join(parts).rstrip()
