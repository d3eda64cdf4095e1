"""Faults planted one at a time, each found and named: by the doctor before SCST starts, or by a
guard while it runs."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax import config_file, train
from har_jax import doctor as doctor_command
from har_jax.checkpoint import Checkpoints
from har_jax.data.dataset import document_frequency_path, open_split
from har_jax.data.protocols import Part
from har_jax.evaluation.run import Predictions, write_captions
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.loading.writer import CaptionerWriter
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.models.captioner import Captioner
from har_jax.scorers.clip import ClipScorer
from har_jax.sessions import assemble as sessions
from har_jax.sessions import observe
from har_jax.sessions.doctor import examine_policy, examine_texts
from har_jax.sessions.observe import validator
from har_jax.sessions.plan import plan_session
from har_jax.sharding import MESH_AXES
from har_jax.text import ptb
from har_jax.text.tokenizer import load_tokenizer, train_tokenizer
from har_jax.training.guards import Guards
from har_jax.training.loggers import RunLog
from tests.conftest import ROOT
from tests.data.test_dataset import forget_sums
from tests.training.commands import train_arguments

FAULTY = "tests.sessions.faulty_rewards:"


@pytest.fixture(autouse=True, scope="module")
def on_one_device():
    """Faults look the same on any mesh, and one device compiles in a third of the time."""
    auto = (jax.sharding.AxisType.Auto,) * 3
    one = jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=auto, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sessions, "choose_mesh", lambda *of: one)
        yield


@pytest.fixture(scope="module")
def mle(workspace, on_one_device, tmp_path_factory):
    """An MLE run that has learnt the 48 images of the workspace by heart, more or less."""
    run = tmp_path_factory.mktemp("mle") / "run"
    settings = {"steps": 100, "batch_size": 16, "log_every": 50, "optim__lr": 1e-2}
    argv = train_arguments(
        workspace, run, data__max_tokens=0, data__val_split="", optim__name="adamw", **settings
    )
    assert train.main(argv) == 0
    return run


def scst_arguments(workspace, mle, run, **changes):
    settings = {
        "batch_size": 16,
        "scst__samples": 3,
        "scst__doctor": "on",
        "data__max_tokens": 0,
    }
    return train_arguments(workspace, run, "scst", init_from=mle, **{**settings, **changes})


def plan_of(workspace, mle, **changes):
    arguments, overrides = train.parse(scst_arguments(workspace, mle, "unused", **changes))
    return plan_session(config_file.load(arguments.config, overrides), "unused")


@pytest.fixture(scope="module")
def session(workspace, mle):
    return sessions.assemble(plan_of(workspace, mle))


@pytest.fixture(scope="module")
def trained(session):
    return session.initial_params()


def by_name(findings):
    return {finding.name: finding for finding in findings}


def refused(capsys, argv, workdir):
    """Runs a training that the doctor must refuse; returns its one line."""
    assert train.main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: the doctor refuses to start: ")
    assert not workdir.exists()
    return lines[-1]


def test_without_a_fault_nothing_stops(workspace, mle, session, trained, monkeypatch, capsys):
    examination = examine_policy(session, trained, 32)
    findings = [*examine_texts(session.plan), *examination.findings]
    assert not [str(finding) for finding in findings if finding.severity == "stop"]
    assert {"df", "reward", "eos", "ended", "temperature", "vocabulary"} <= by_name(findings).keys()
    assert examination.figures["reward_greedy"] > 0.5
    # What it looked at is not taken from the training.
    before = session.batches.get_state()
    examine_policy(session, trained, 16)
    assert session.batches.get_state() == before
    # The command: the same findings, here with the session of above.
    monkeypatch.setattr(sessions, "assemble", lambda plan: session)
    argv = [a for a in scst_arguments(workspace, mle, "") if not a.startswith("--workdir")]
    assert doctor_command.main([*argv, "--images=32", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in printed] == [f.name for f in findings]


def test_wrong_document_frequencies(workspace, mle, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(workspace / "data", data)
    references = [
        [ptb.words(text) for text in captions] for captions in open_split(data, "val").captions
    ]
    # As many images as the training split has, so that only their content tells.
    table = DocumentFrequency.from_references(references * 3, name="train")
    assert table.n_images == len(open_split(data, "train"))
    table.save(document_frequency_path(data, "train"))
    forget_sums(data)
    run = tmp_path / "run"
    line = refused(capsys, scst_arguments(workspace, mle, run, data__dir=data), run)
    assert (
        "df: the table of 48 images (train) lacks" in line and "prepare the dataset again" in line
    )


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("gives_nan", "gave nan to caption"),
        ("has_the_wrong_shape", "returned shape (48,) for 48 images of 3 captions"),
        ("raises", "raised KeyError: 'a key that is not there' (faulty_rewards.py, line"),
        ("is_always_zero", "held against their own images, is 0"),
        ("does_not_look", "a reward must tell images apart"),
    ],
)
def test_a_broken_reward(workspace, mle, tmp_path, capsys, reward, message):
    run = tmp_path / "run"
    line = refused(capsys, scst_arguments(workspace, mle, run, scst__reward=FAULTY + reward), run)
    assert "reward: " in line and message in line


def test_a_reward_that_breaks_only_on_what_the_policy_writes(session, trained, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("an empty caption")

    part = next(iter(session.callback.reward.parts.values()))
    monkeypatch.setattr(type(part), "__call__", broken)
    finding = by_name(examine_policy(session, trained, 16).findings)["reward"]
    assert finding.severity == "stop" and "ZeroDivisionError: an empty caption" in finding.text


def test_a_reward_without_the_end(workspace, mle):
    finding = by_name(examine_texts(plan_of(workspace, mle, scst__eos=False)))["eos"]
    assert finding.severity == "warn" and "--config.scst.eos=true" in finding.advice


def test_references_without_the_end(workspace, mle, monkeypatch):
    plan = plan_of(workspace, mle)
    whole = type(plan.parts.tokenizer).encode_batch
    monkeypatch.setattr(
        type(plan.parts.tokenizer),
        "encode_batch",
        lambda self, texts: [ids[:-1] for ids in whole(self, texts)],
    )
    finding = by_name(examine_texts(plan))["end"]
    assert finding.severity == "stop" and finding.text.startswith("0 of 240")


def test_a_policy_that_never_ends(session, trained):
    eos = session.plan.parts.tokenizer.eos_id
    heads = [n for n, x in trained.items() if x.shape[-1] > 400 and x.ndim == 2]
    assert len(heads) == 1
    head = trained[heads[0]]
    without = jnp.where(jnp.arange(head.shape[-1]) == eos, 0.0, 4 * head)
    changed = {**trained, heads[0]: without}
    finding = by_name(examine_policy(session, changed, 16).findings)["ended"]
    assert finding.severity == "stop" and "was EOS dropped" in finding.advice


def test_a_tokenizer_of_another_vocabulary(session, trained, monkeypatch, tmp_path):
    """Pieces of other texts under the same ids: whole captions decode into words of nobody."""
    other = ["we", "the", "people", "of", "these", "united", "states", "form", "perfect", "union"]
    texts = [" ".join(other[i:] + other[:i]) for i in range(len(other))] * 4
    train_tokenizer(texts, 420, tmp_path)
    parts = dataclasses.replace(session.plan.parts, tokenizer=load_tokenizer(tmp_path))
    monkeypatch.setattr(session, "plan", dataclasses.replace(session.plan, parts=parts))
    monkeypatch.setattr(session.callback, "_decode", parts.tokenizer.decode)
    finding = by_name(examine_policy(session, trained, 16).findings)["vocabulary"]
    assert finding.severity == "stop" and "tokenizer spells other words" in finding.advice


def test_a_tokenizer_that_changes_words(workspace, mle, monkeypatch):
    plan = plan_of(workspace, mle)
    decode = type(plan.parts.tokenizer).decode
    monkeypatch.setattr(
        type(plan.parts.tokenizer),
        "decode",
        lambda self, ids: decode(self, ids).replace("e", "3"),
    )
    finding = by_name(examine_texts(plan))["tokenizer"]
    assert finding.severity == "stop" and "comes back as" in finding.text


def test_another_temperature_in_the_update(workspace, mle, monkeypatch):
    scores = Captioner.token_scores
    monkeypatch.setattr(
        Captioner,
        "token_scores",
        lambda self, cache, tokens, temperature=1.0: scores(self, cache, tokens),
    )
    session = sessions.assemble(plan_of(workspace, mle, scst__temperature=0.8))
    findings = examine_policy(session, session.initial_params(), 16).findings
    found = [f for f in findings if f.name == "temperature"]
    assert [f.severity for f in found] == ["stop", "warn"]
    assert "samples are not drawn from the policy that is updated" in found[0].advice


def test_the_guard_of_clip_score_sees_what_evaluation_sees(
    workspace, mle, session, trained, monkeypatch
):
    """Of the same captions; and then captions that CIDEr likes and the CLIP does not."""
    clip = workspace / "models/clip-b"
    plan = plan_of(workspace, mle, eval__clip_score=clip, guards__clip="stop")
    with contextlib.closing(RunLog("unused", enabled=False)) as logger:
        validate = validator(dataclasses.replace(session, plan=plan), logger)
    figures = validate(trained, 0)
    live = LoadedCaptioner(
        session.blueprint,
        {**session.frozen, **trained},
        plan.parts.tokenizer,
        plan.parts.preprocessor,
        session.mesh,
        plan.config,
    )
    split = Part(open_split(workspace / "data", "val"), 0, 8)
    texts = write_captions(CaptionerWriter(live), split).texts
    images = ((i, split.read(n)) for n, i in enumerate(split.ids))
    references = open_split(workspace / "data", "val").references()
    scored = ClipScorer(clip).score(images, texts, references)
    assert figures["CLIPScore"] == pytest.approx(scored.clip_score, abs=1e-5)

    guards = Guards(dataclasses.replace(plan.config.guards, clip_drop=0.001))
    guards.begin({f"val/{name}": value for name, value in figures.items()})
    worst = min(scored.per_image, key=lambda i: scored.per_image[i][0])
    monkeypatch.setattr(observe, "write_captions", lambda *a, **k: hacked)
    hacked = Predictions(dict.fromkeys(texts, texts[worst]), dict.fromkeys(texts, True))
    after = validate(trained, 9)
    assert after["CLIPScore"] < figures["CLIPScore"] - 0.001
    trips = guards.observe_validation(9, {**after, "CIDEr": figures["CIDEr"] + 0.1})
    assert [trip.guard for trip in trips] == ["clip"]


def events(run):
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["event"] for row in rows if "event" in row]


def test_a_learning_rate_that_collapses_the_policy(workspace, mle, tmp_path, capsys):
    """Rolled back once, to the start since no checkpoint is there; then, as it happens again, it
    is stopped by the guard that saw it."""
    run = tmp_path / "run"
    argv = scst_arguments(
        workspace, mle, run, steps=40, log_every=1, optim__lr=1.0, optim__name="adamw",
        scst__doctor="off", guards__reward="rollback", guards__max_rollbacks=1,
        guards__kl="warn", guards__window=1, data__val_split="",
    )  # fmt: skip
    assert train.main(argv) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "guard reward: " in last and "after 1 roll-backs" in last
    info = json.loads((run / "run.json").read_text())
    (rollback,) = info["rollbacks"]
    assert rollback["to"] == 0 and rollback["guards"] == ["reward"] and rollback["step"] < 10
    happened = events(run)
    assert [e["lr_scale"] for e in happened if e.get("rollback")] == [0.5]
    assert "kl" in {e.get("guard") for e in happened}  # far from the MLE policy, too
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row for row in rows if "train/reward" in row}
    # The start again: the first step after it earns what the first step earned.
    again = logged[rollback["step"] + 1]["train/reward"]
    assert again > 0.6 * logged[1]["train/reward"] > logged[rollback["step"]]["train/reward"]
    assert np.isclose(logged[1]["train/kl"], 0, atol=1e-3) and logged[1]["train/reward"] > 0.3
    steps = Checkpoints(run, read_only=True).steps()
    assert steps == [max(logged)]  # where it stopped
