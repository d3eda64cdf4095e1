"""What docs/architecture.md says of adding things: a reward, an objective and a writer of one's
own, in a module of one's own, with public names only; and a family of encoders, by its row."""

import dataclasses
import json
import sys
import textwrap

import pytest
from flax import nnx

from har_jax import load_captioner, train
from har_jax.data.dataset import open_split
from har_jax.data.images import Preprocessor
from har_jax.evaluation.run import evaluate_writer
from har_jax.interchange.families import registry
from har_jax.interchange.families.family import Family
from har_jax.interchange.table import Row, tower_layers
from har_jax.models.encoders.vit import ViT, ViTConfig, new_blocks, patch_embedding
from tests.conftest import ROOT
from tests.helpers import initialise, long
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


def test_a_reward_and_an_objective(mine, workspace, tmp_path, on_one_device):
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


def test_an_objective_that_is_not_there(mine, workspace, tmp_path, capsys, on_one_device):
    arguments = dict(init_from=tmp_path / "mle", data__val_split="")
    assert train.main(train_arguments(workspace, tmp_path / "mle", data__val_split="")) == 0
    for name, said in (
        ("policy_gradiant", "did you mean 'policy_gradient'?"),
        ("mi:ne", "no module"),
    ):
        argv = train_arguments(
            workspace, tmp_path / "scst", "scst", scst__objective=name, **arguments
        )
        assert train.main(argv) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "scst").exists()


def test_a_writer(mine, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # the metrics that start Java take long
    split = open_split(workspace / "data", "test")
    scores = evaluate_writer(mine.Parrot(), split, tmp_path / "out", limit=5).scores
    assert scores["n_images"] == 5 and scores["CIDEr"] is not None
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [row["image_id"] for row in written] == split.ids[:5]
    assert written[3]["caption"] == f"a picture of {len(split.read(3))} bytes"
    assert json.loads((tmp_path / "out/scores.json").read_text())["health"]["cut_rate"] is None


@dataclasses.dataclass(frozen=True)
class BlotConfig(ViTConfig):
    what, model_type = "blot", "blot"


class BlotTower(ViT, of=BlotConfig):
    """A ViT without positions, whose mean stands for an image."""

    def __init__(self, config, *, rngs, dtype, scan_layers=False, attention="blocks"):
        self.config = config
        self.patches = patch_embedding(config, rngs=rngs, dtype=dtype)
        self.layers = new_blocks(config, scan_layers, attention, rngs=rngs, dtype=dtype)

    def embedded(self, patches):
        return self.patches(patches)

    def pool(self, last_bnd):
        return last_bnd.mean(axis=1)


BLOT = Family(
    ("blot",),
    lambda hf, where: BlotConfig(**{f.name: hf[f.name] for f in dataclasses.fields(BlotConfig)}),
    lambda config: {"model_type": "blot", **dataclasses.asdict(config)},
    BlotTower,
    [
        Row("patches.weight", "patches.kernel", "d c p q -> p q c d"),
        *tower_layers("layers.{}", "layers.{}"),
    ],
    lambda config: "",
)


@pytest.mark.parametrize("projector", ["patch", *long(["pooled"])])
def test_a_family_of_encoders(workspace, tmp_path, monkeypatch, projector, on_one_device):
    """Nothing else knows its name: its row suffices to train on it and to caption with the run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(registry.ENCODERS, "blot", BLOT)
    config = BlotConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32,
    )  # fmt: skip
    _, params = initialise(lambda key: config.build(rngs=nnx.Rngs(key)), 0)
    BLOT.save(config, params, tmp_path / "blot")
    settings = json.dumps(Preprocessor.for_size(32).to_hf())
    (tmp_path / "blot/preprocessor_config.json").write_text(settings)
    own = {"model__encoder": tmp_path / "blot", "model__projector": projector}
    own |= {"model__vision_layer": -1, "data__val_split": ""}
    run = tmp_path / "run"
    assert train.main(train_arguments(workspace, run, steps=1, **own)) == 0
    captioner = load_captioner(run)
    assert captioner.blueprint.config.visual_tokens == (4 if projector == "patch" else 10)
    images = [example.image for example in open_split(workspace / "data", "val")][:2]
    assert len(captioner.generate(images, max_tokens=4)) == 2
