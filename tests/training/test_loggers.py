"""Logs of a run: valid JSON always, and a resumed run's log is an unbroken one's."""

import contextlib
import json
import logging

import pytest
from tensorboardX.proto.event_pb2 import Event

from har_jax.files import read_json_lines
from har_jax.training.loggers import METRICS, SAMPLES, Logger, RunLog, TensorBoard, console_line


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(run_dir, steps, **settings):
    with contextlib.closing(RunLog(run_dir, enabled=True, **settings)) as logger:
        for step in steps:
            logger.write(step, {"train/loss": 1.0 / step})
            logger.samples(step, "val", [{"image_id": 7, "caption": f"at {step}"}])


def events(run_dir):
    """Every event of the TensorBoard files, oldest file first (TFRecord framing, read by hand)."""
    found = []
    files = sorted((run_dir / "tensorboard").glob("events.*"))
    for path in files:
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + size])
            found.append(event)
            at += 12 + size + 4
    return found


def test_each_line_is_an_object_with_step_and_time(tmp_path):
    write_steps(tmp_path / "run", [10, 20])
    rows = lines(tmp_path / "run" / METRICS)
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[1]["train/loss"] == 0.05 and rows[0]["time"] <= rows[1]["time"]
    assert lines(tmp_path / "run" / SAMPLES)[0] == {
        "step": 10,
        "split": "val",
        "image_id": 7,
        "caption": "at 10",
    }


def test_a_disabled_log_leaves_no_trace(tmp_path):
    with contextlib.closing(RunLog(tmp_path / "run", enabled=False)) as logger:
        logger.write(1, {"train/loss": 1.0})
        logger.samples(1, "val", [{"caption": "x"}])
        logger.truncate_after(0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_lacks_becomes_null(tmp_path, value):
    with contextlib.closing(RunLog(tmp_path, enabled=True)) as logger:
        logger.write(1, {"train/loss": value, "train/ok": 2})
    text = (tmp_path / METRICS).read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["train/loss"] is None and row["train/ok"] == 2.0


def test_resuming_leaves_neither_doubled_nor_phantom_steps(tmp_path):
    write_steps(tmp_path, [10, 20, 30, 40])
    with contextlib.closing(RunLog(tmp_path, enabled=True)) as logger:
        logger.truncate_after(20)
        for step in (30, 40, 50):
            logger.write(step, {"train/loss": -1.0})
    rows = lines(tmp_path / METRICS)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    assert [row["train/loss"] for row in rows[2:]] == [-1.0] * 3
    assert [row["step"] for row in lines(tmp_path / SAMPLES)] == [10, 20]


def test_truncating_to_zero_and_of_nothing(tmp_path):
    with contextlib.closing(RunLog(tmp_path / "new", enabled=True)) as logger:
        logger.truncate_after(0)
    assert not (tmp_path / "new").exists()
    write_steps(tmp_path, [1])
    with contextlib.closing(RunLog(tmp_path, enabled=True)) as logger:
        logger.truncate_after(0)
    assert (tmp_path / METRICS).read_text() == ""


@pytest.mark.parametrize("tail", ['{"step": 30, "train/lo', '{"step": 3', "{", "\x00\x00\x00"])
def test_a_line_cut_off_by_a_kill(tmp_path, tail):
    write_steps(tmp_path, [10, 20])
    with (tmp_path / METRICS).open("a") as file:
        file.write(tail)
    assert [row["step"] for row in read_json_lines(tmp_path / METRICS)] == [10, 20]
    write_steps(tmp_path, [40])  # without truncate_after: the tail must not swallow the next line
    assert [row["step"] for row in lines(tmp_path / METRICS)] == [10, 20, 40]
    with (tmp_path / METRICS).open("a") as file:
        file.write(tail)
    with contextlib.closing(RunLog(tmp_path, enabled=True)) as logger:
        logger.truncate_after(40)
    assert [row["step"] for row in lines(tmp_path / METRICS)] == [10, 20, 40]


def test_truncation_is_atomic(tmp_path, monkeypatch):
    write_steps(tmp_path, [10, 20])
    before = (tmp_path / METRICS).read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    logger = RunLog(tmp_path, enabled=True)
    with pytest.raises(KeyboardInterrupt):
        logger.truncate_after(10)
    assert (tmp_path / METRICS).read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {METRICS, SAMPLES}


def board(run_dir):
    return RunLog(run_dir, enabled=True, others=[TensorBoard(run_dir)])


def test_tensorboard_is_told_to_forget_what_was_truncated(tmp_path):
    with contextlib.closing(
        RunLog(tmp_path, enabled=True, others=[TensorBoard(tmp_path)])
    ) as logger:
        logger.write(10, {"train/loss": 1.0})
        logger.write(20, {"train/loss": 2.0})
    with contextlib.closing(
        RunLog(tmp_path, enabled=True, others=[TensorBoard(tmp_path)])
    ) as logger:
        logger.truncate_after(10)
        logger.write(20, {"train/loss": 3.0})
    found = events(tmp_path)
    scalars = [
        (e.step, v.tag, v.simple_value) for e in found for v in e.summary.value if v.simple_value
    ]
    assert scalars == [(10, "train/loss", 1.0), (20, "train/loss", 2.0), (20, "train/loss", 3.0)]
    purges = [e.step for e in found if e.HasField("session_log")]
    assert purges[-1] == 11  # START at step 11: readers drop what earlier files say from there on


def test_the_console_line(tmp_path, caplog):
    with (
        caplog.at_level(logging.INFO, logger="har_jax"),
        contextlib.closing(RunLog(tmp_path, enabled=True, total_steps=600)) as logger,
    ):
        logger.write(20, {"train/loss": 2.3456, "train/images_per_second": 850.2, "train/x": 1})
    assert caplog.messages == ["step  20/600  train  loss   2.3456  850 img/s"]


def test_a_logger_of_ones_own(tmp_path):
    """It defines what it is interested in, and is told the same as the others."""
    told = []

    class Own(Logger):
        def write(self, step, figures):
            told.append((step, dict(figures)))

        def truncate_after(self, step):
            told.append(("truncate", step))

    with contextlib.closing(RunLog(tmp_path, enabled=True, others=[Own()])) as logger:
        logger.truncate_after(2)
        logger.write(3, {"train/loss": 0.5})
        logger.event(3, {"guard": "length"})
        logger.samples(3, "val", [{"caption": "x"}])
        logger.flush()
    assert told == [("truncate", 2), (3, {"train/loss": 0.5})]
    assert [row["step"] for row in lines(tmp_path / METRICS)] == [3, 3]


def test_parts_of_a_reward_are_named_on_the_console():
    line = console_line(
        5, {"train/reward": 3.2, "train/reward_part/bleu": 0.25, "train/reward_part/my.f:g": 1}
    )
    assert line.endswith("train  reward  3.200  bleu 0.250  my.f:g 1.000")


def test_console_columns_are_aligned():
    a = console_line(5, {"train/loss": 12.5, "train/accuracy": 0.5, "train/grad_norm": 0.1}, 1000)
    b = console_line(
        900, {"train/loss": float("nan"), "train/accuracy": 0.051, "train/grad_norm": 10.0}, 1000
    )
    assert a.index("accuracy") == b.index("accuracy")
    assert a.index("|grad|") == b.index("|grad|")
    assert "nan" in b and "50.0%" in a
