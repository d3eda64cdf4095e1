"""`docs/security.md` is true of its tests, and a run of others runs nothing."""

import importlib
import json
import re
import sys

from har_jax.config import Config
from har_jax.reports.page import write_report
from har_jax.training.run_dir import read_run
from tests.conftest import ROOT


def test_the_tests_that_the_document_names_are_there():
    text = (ROOT / "docs" / "security.md").read_text()
    assert len(text.splitlines()) < 80
    named = re.findall(r"tests/[\w/]+\.py(?:::\w+)?", text)
    assert len(named) > 15
    for name in named:
        path, _, test = name.partition("::")
        source = (ROOT / path).read_text()
        assert not test or f"def {test}(" in source, name


def test_a_run_runs_no_code_of_its_own(tmp_path, monkeypatch):
    """Its configuration may name a reward and an objective; who reads the run imports neither."""
    (tmp_path / "planted_by_a_run.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    config = Config().to_dict() | {"stage": "scst"}
    config["scst"] |= {"reward": "planted_by_a_run:a", "objective": "planted_by_a_run:b"}
    (run / "config.json").write_text(json.dumps(config))
    (run / "run.json").write_text(json.dumps({"stage": "scst", "reward_signature": "x"}))
    assert read_run(run)[0].scst.reward == "planted_by_a_run:a"
    assert "planted_by_a_run:a" in write_report(run).read_text()
    assert not (tmp_path / "ran").exists()
    importlib.import_module("planted_by_a_run")  # that it would have been found
    assert (tmp_path / "ran").exists()
    del sys.modules["planted_by_a_run"]
