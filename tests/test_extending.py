"""What docs/architecture.md says of adding things: a reward, an objective and a writer of one's
own, in a module of one's own, with public names only."""

import json
import sys
import textwrap

import pytest

from har_jax import train
from har_jax.data.dataset import open_split
from har_jax.evaluation.run import evaluate_writer
from tests.conftest import ROOT
from tests.training.commands import train_arguments

MODULE = '''
import jax.numpy as jnp
import numpy as np

from har_jax.data.protocols import Written
from har_jax.figures import Loss, mean
from har_jax.objectives.policy_gradient import advantages


def short(image_ids, captions, ended):
    """The fewer words, the better."""
    return np.array([[1 / (1 + len(c.split())) for c in row] for row in captions], np.float32)


def clipped(experience, logp, config):
    """PPO's clipped ratio, per token, on self-critical advantages."""
    ratio = jnp.exp(logp - experience.samples.logp)
    advantage = advantages(experience, config.baseline)[..., None]
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    mask = experience.mask_bkt
    outside = mean(jnp.abs(ratio - 1) > 0.2, mask)
    return Loss(-jnp.sum(gain * mask), jnp.sum(mask), {"clipped": outside})


class Parrot:
    """Says the same of every image, but how many bytes it has."""

    def write(self, images):
        for i in range(len(images)):
            yield Written(f"a picture of {len(images.read(i))} bytes")
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_extension.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_extension", raising=False)
    monkeypatch.chdir(ROOT)
    import my_extension

    return my_extension


def test_a_reward_and_an_objective(mine, workspace, tmp_path):
    assert train.main(train_arguments(workspace, tmp_path / "mle", data__val_split="")) == 0
    argv = train_arguments(
        workspace,
        tmp_path / "scst",
        "scst",
        init_from=tmp_path / "mle",
        data__val_split="",
        scst__reward="my_extension:short",
        scst__objective="my_extension:clipped",
        scst__baseline="leave_one_out",
        scst__samples=2,
    )
    assert train.main(argv) == 0
    rows = [json.loads(x) for x in (tmp_path / "scst/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "train/clipped" in row]
    assert len(logged) == 2 and 0 < logged[0]["train/reward"] <= 1
    assert "train/reward_greedy" not in logged[0]  # this baseline needs no greedy row
    signature = json.loads((tmp_path / "scst/run.json").read_text())["reward_signature"]
    assert "my_extension:short[" in signature and "objective[my_extension:clipped]" in signature


def test_an_objective_that_is_not_there(mine, workspace, tmp_path, capsys):
    arguments = dict(init_from=tmp_path, data__val_split="")
    for name, said in (
        ("policy_gradiant", "did you mean 'policy_gradient'?"),
        ("mi:ne", "no module"),
    ):
        assert train.main(train_arguments(workspace, tmp_path / "mle", data__val_split="")) == 0
        arguments["init_from"] = tmp_path / "mle"
        argv = train_arguments(
            workspace, tmp_path / "scst", "scst", scst__objective=name, **arguments
        )
        assert train.main(argv) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "scst").exists()


def test_a_writer(mine, workspace, tmp_path):
    split = open_split(workspace / "data", "test")
    scores = evaluate_writer(mine.Parrot(), split, tmp_path / "out", limit=5).scores
    assert scores["n_images"] == 5 and scores["CIDEr"] is not None
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [row["image_id"] for row in written] == split.ids[:5]
    assert written[3]["caption"] == f"a picture of {len(split.read(3))} bytes"
    assert json.loads((tmp_path / "out/scores.json").read_text())["health"]["cut_rate"] is None
