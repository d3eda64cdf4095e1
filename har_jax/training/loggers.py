"""What a run tells: `metrics.jsonl`, `samples.jsonl`, TensorBoard files, the console.

Every line is one `write`, so a run that is killed leaves at most one line cut off. After a restore
`truncate_after(step)` removes what lies beyond the restored step, for these steps are done again: a
resumed run's log reads like an unbroken one's.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from tensorboardX import SummaryWriter

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
}


class MetricsWriter:
    """Appends to the logs of a run directory. With `enabled=False` every method does nothing.

    Args:
      run_dir: created when something is written.
      enabled: whether this process writes; None: process 0 does.
      total_steps: for the console's `step 120/600`.
      tensorboard: also write event files.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        *,
        enabled: bool | None = None,
        total_steps: int | None = None,
        tensorboard: bool = True,
    ):
        self.run_dir = pathlib.Path(run_dir)
        self.enabled = jax.process_index() == 0 if enabled is None else enabled
        self.total_steps = total_steps
        self._with_events = tensorboard
        self._files: dict[str, io.FileIO] = {}
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Files scalars such as `{"train/loss": 2.1}` under `step`, and logs one console line."""
        if not self.enabled:
            return
        values = {name: float(value) for name, value in figures.items()}
        self._append(METRICS, {"step": int(step), "time": round(time.time(), 3), **values})
        if self._with_events:
            events = self._event_writer()
            for name, value in values.items():
                events.add_scalar(name, value, int(step))
        log.info("%s", console_line(step, values, self.total_steps))

    def event(self, step: int, fields: Mapping[str, Any]) -> None:
        """Files something that happened, such as a guard's trip: `{"step", "event": {...}}`."""
        if self.enabled:
            row = {"step": int(step), "time": round(time.time(), 3), "event": dict(fields)}
            self._append(METRICS, row)

    def samples(self, step: int, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Files captions: each row has `image_id`, `caption`, `references` and whatever else."""
        if not self.enabled:
            return
        for row in rows:
            self._append(SAMPLES, {"step": int(step), "split": split, **row})

    def truncate_after(self, step: int) -> None:
        """Drops what was logged for steps beyond `step` (0: all), and lines that a kill cut off.

        TensorBoard's files are append-only; there a mark tells readers to forget these steps.
        """
        if not self.enabled:
            return
        self.close()
        for name in (METRICS, SAMPLES):
            path = self.run_dir / name
            if not path.exists():
                continue
            before = path.read_bytes()
            kept = []
            for line in before.splitlines():
                row = parse_line(line)
                if row is not None and row["step"] <= step:
                    kept.append(line + b"\n")
            after = b"".join(kept)
            if after != before:
                write_bytes(path, after)
        if any((self.run_dir / TENSORBOARD).glob("events.*")):
            self._purge_step = step + 1

    def flush(self) -> None:
        """Event files are buffered; the JSON lines never are."""
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Closes all files; a later `write` opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            _cut_partial_line(self.run_dir / name)
            # Unbuffered: a line is in the operating system's hands when `write` returns, and a
            # killed process loses nothing.
            self._files[name] = open(self.run_dir / name, "ab", buffering=0)  # noqa: SIM115
        self._files[name].write((dumps(row) + "\n").encode())

    def _event_writer(self) -> SummaryWriter:
        if self._events is None:
            self._events = SummaryWriter(
                str(self.run_dir / TENSORBOARD),
                purge_step=self._purge_step,
                flush_secs=30,
                # Files are named by the second: without this a quick resume overwrites the last.
                filename_suffix=f".{time.time_ns()}",
            )
            self._purge_step = None
        return self._events


def _cut_partial_line(path: pathlib.Path) -> None:
    """Without this, a line after one that was cut off would be lost with it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)


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
            f"{label} {_number(values[key], spec)}{unit}".strip()
            for key, (label, spec, unit) in _CONSOLE.items()
            if key in values
        ]
        if group.endswith("/reward_part"):
            shown = [f"{name} {value:.3f}" for name, value in values.items()]
        elif group and shown:
            parts.append(f"{group:<5}")
        parts += shown
    return "  ".join(parts).rstrip()


def _number(value: float, spec: str) -> str:
    if math.isfinite(value):
        return format(value, spec)
    width = spec.split(".")[0]
    return f"{value!s:>{width}}"
