"""docs/rewards.md says what is so: its code runs, its names are the names."""

import re
import sys
import types

from har_jax.metrics import gender
from har_jax.rewards import mix
from tests.conftest import ROOT

TEXT = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")


def test_the_code_runs(monkeypatch):
    module = types.ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/rewards.md", "exec"), vars(module))


def test_every_name_is_explained():
    table = TEXT.split("## What is logged")[0]
    assert all(f"`{name}`" in table for name in mix.NAMES)
    figures = gender.summary({1: [["a"]]}, {1: ["a"]})
    assert all(f"`{name}`" in TEXT for name in figures)
