"""Experiment trackers, offline and for real: what the packages themselves kept of a run."""

import contextlib
import importlib.util
import json
import logging
import pathlib
import re
import struct
import time

import pytest

from har_jax.config import Config
from har_jax.errors import UserError
from har_jax.sessions.plan import plan_session
from har_jax.training.loggers import METRICS, Logger, RunLog
from har_jax.training.trackers import IDS, TRACKERS, as_table, make_trackers, names_of

LOSSES = [(1, 1), (2, 0.5), (2, 0.5), (3, 1 / 3)]
SETTINGS = Config(steps=7).to_dict()
ROWS = [
    {"image_id": 7, "caption": "a <b>cat</b>", "references": ["a cat", "the cat"], "CIDEr": 1.5},
    {"image_id": "x/9.jpg", "caption": "", "references": [], "CIDEr": None},
]


def tell(trackers, run_dir, steps, **settings):
    others = make_trackers(trackers, run_dir, SETTINGS)
    with contextlib.closing(RunLog(run_dir, enabled=True, others=others, **settings)) as logger:
        logger.truncate_after(steps[0] - 1)
        for step in steps:
            logger.write(step, {"train/loss": 1 / step, "val/CIDEr": float("nan")})
        logger.event(steps[-1], {"guard": "length", "value": 2.0})
        logger.samples(steps[-1], "val", ROWS)


def known_id(run_dir, name):
    return json.loads((run_dir / IDS).read_text())[name]


def test_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = tmp_path / "scst"
    tell("wandb", run, [1, 2])
    first = known_id(run, "wandb")
    tell("wandb", run, [2, 3])  # continued after a kill
    assert known_id(run, "wandb") == first
    deadline = time.monotonic() + 30  # its own process writes the files
    while len(_wandb_kept(run, first)[0]) < len(LOSSES) and time.monotonic() < deadline:
        time.sleep(0.2)
    history, project = _wandb_kept(run, first)
    assert [(step, float(loss)) for step, loss in history] == LOSSES
    assert project == {("mine", "scst")}
    columns, data = as_table(ROWS)
    tables = [json.loads(p.read_text()) for p in run.glob("wandb/offline-run-*/**/*.table.json")]
    assert tables == [{"columns": columns, "data": data}] * 2


def _wandb_kept(run_dir, identity):
    """(step and loss of each line, names of projects and runs), in the order of the files."""
    history, project = [], set()
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        assert identity in file.name
        for record in _wandb_records(file):
            row = {item.key or item.nested_key[0]: item for item in record.history.item}
            if "train/loss" in row:
                history.append((json.loads(row["step"].value_json), row["train/loss"].value_json))
            if record.run.project:
                project.add((record.run.project, record.run.display_name))
    return history, project


def _wandb_records(file):
    """An offline run's file: LevelDB's log format (blocks of 32 KiB; checksum, length and kind
    before each piece), behind seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run = tmp_path / "scst"
    tell("mlflow", run, [1, 2])
    tell("mlflow", run, [2, 3])
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert [r.info.run_id for r in found] == [known_id(run, "mlflow")]
    assert found[0].info.run_name == "scst" and found[0].info.status == "FINISHED"
    params = found[0].data.params
    assert params["optim.lr"] == "0.0001" and params["steps"] == "7"
    losses = client.get_metric_history(found[0].info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == LOSSES
    assert json.loads(found[0].data.tags["event.3"]) == {"guard": "length", "value": 2.0}
    tables = client.list_artifacts(found[0].info.run_id, "samples/val")
    assert [pathlib.Path(t.path).name for t in tables] == ["step-0000002.json", "step-0000003.json"]
    columns, data = as_table(ROWS)
    path = tmp_path / "mlruns" / found[0].info.experiment_id / found[0].info.run_id
    assert json.loads((path / "artifacts" / tables[0].path).read_text()) == {
        "columns": columns,
        "data": data,
    }


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    pytest.importorskip("trackio")
    from trackio import SQLiteStorage

    run = tmp_path / "scst"
    tell("trackio", run, [1, 2])
    tell("trackio", run, [2, 3])
    name = known_id(run, "trackio")
    assert name.startswith("scst-") and SQLiteStorage.get_runs("mine") == [name]
    logs = SQLiteStorage.get_logs("mine", name)
    losses = [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row]
    assert losses == LOSSES
    tables = [row["samples/val"] for row in logs if "samples/val" in row]
    assert len(tables) == 2 and tables[0]["_type"] == "trackio.table"


def test_tables():
    columns, data = as_table(ROWS)
    assert columns == ["image_id", "caption", "references", "CIDEr"]
    assert data == [
        ["7", "a <b>cat</b>", '["a cat", "the cat"]', 1.5],
        ["x/9.jpg", "", "[]", None],
    ]
    assert as_table([]) == ([], []) and as_table([{"a": 1}, {"b": 2}])[1] == [[1, None], [None, 2]]


def of_ones_own(run_dir, settings):
    class Own(Logger):
        def write(self, step, figures):
            (run_dir / "own.txt").write_text(f"{settings['steps']} {step} {figures['train/loss']}")

    return Own()


def broken(run_dir, settings):
    class Broken(Logger):
        def write(self, step, figures):
            raise ConnectionError("no net\nat all")

        def samples(self, step, split, rows):
            pytest.fail("it was told more after it had failed")

    return Broken()


def test_one_of_ones_own_and_one_that_fails(tmp_path, caplog):
    """A tracker never ends a run: it is told of once, and everything else goes on."""
    here = "tests.training.test_trackers"
    with caplog.at_level(logging.WARNING):
        tell(f"{here}:broken, {here}:of_ones_own", tmp_path, [4, 5])
    assert (tmp_path / "own.txt").read_text() == "7 5 0.2"
    warned = [m for m in caplog.messages if "tracker" in m]
    assert len(warned) == 1 and "ConnectionError: no net\\nat all" in warned[0]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3


def test_what_is_not_there_is_told_before_the_run(tmp_path, monkeypatch):
    assert names_of(" wandb ,, tensorboard") == ["wandb", "tensorboard"] or not _there("wandb")
    assert names_of("") == []
    for text, said in (
        ("tensorbord", r"'tensorbord' is unknown \(did you mean 'tensorboard'\?\)"),
        ("comet", "give names of tensorboard, wandb, mlflow, trackio, with commas, or"),
        ("tests.training.test_trackers:browken", "did you mean 'broken'"),
    ):
        with pytest.raises(UserError, match=said):
            plan_session(Config(trackers=text), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        fix = re.escape(f"{name} is not installed; pip install 'har_jax[{name}]'")
        with pytest.raises(UserError, match=fix):
            names_of(f"tensorboard,{name}")


def _there(name):
    return importlib.util.find_spec(name) is not None
