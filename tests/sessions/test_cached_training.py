"""Training and evaluation from a feature cache, against the same from images; imported features."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import har_jax
from har_jax import caption, config_file, evaluate, prepare, train
from har_jax.data.dataset import open_split
from har_jax.data.features.cache import FeatureCache
from har_jax.data.images import Preprocessor
from har_jax.distributed import put_batch
from har_jax.errors import UserError
from har_jax.evaluation.run import evaluate_run
from har_jax.sessions.assemble import assemble
from har_jax.sessions.plan import plan_session
from tests.conftest import ROOT
from tests.training.commands import train_arguments


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(shutil, "which", lambda *_: None)  # the metrics that start Java take long


def encode(workspace, out, *more, clip="clip-l"):
    return prepare.main(
        [
            "features",
            f"--data={workspace / 'data'}",
            f"--encoder={workspace / 'models' / clip}",
            f"--out={out}",
            *map(str, more),
        ]
    )


@pytest.fixture(scope="module")
def cache(workspace, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "cache"
    assert encode(workspace, out) == 0
    return out


def settings(workspace, run, stage="mle", **overrides):
    small = {"steps": 3, "log_every": 1, "data__val_split": "", **overrides}
    return train_arguments(workspace, run, stage, **small)


@pytest.fixture(scope="module")
def runs(workspace, cache, tmp_path_factory):
    """MLE from images and from the cache."""
    here = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, more in (("images", {}), ("cached", {"data__features": cache})):
            assert train.main(settings(workspace, here / name, **more)) == 0
    return here


def first_loss(argv):
    """Of the first batch of a run, as its session computes it."""
    arguments, overrides = train.parse(argv)
    config = config_file.load(arguments.config, overrides)
    made = assemble(plan_session(config, arguments.workdir))
    batch = put_batch(next(made.batches), made.mesh)
    with jax.set_mesh(made.mesh):
        return made.look(made.initial_params(), made.frozen, batch, jax.random.key(0))


def figures(run, key):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def mistake(capsys, main, argv):
    """Runs a command that must fail: exit code 2 and one line, which is returned."""
    assert main(argv) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0], err
    return lines[0]


# -------------------------------------------------------------------------- the encoder's features


@pytest.mark.parametrize("layer", [-2, 1, "pooled"])
def test_features_are_those_of_transformers(workspace, tmp_path, layer):
    import torch
    import transformers

    how = ["--pooled"] if layer == "pooled" else [f"--layer={layer}"]
    assert encode(workspace, tmp_path / "cache", "--split=test", "--batch-size=5", *how) == 0
    clip = workspace / "models/clip-l"
    tower = transformers.CLIPModel.from_pretrained(clip).vision_model
    split = open_split(workspace / "data", "test")
    pixels = np.stack([Preprocessor.from_hf(clip)(example.image) for example in split])
    with torch.no_grad():
        said = tower(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    expected = (
        said.pooler_output[:, None] if layer == "pooled" else said.hidden_states[layer][:, 1:]
    )
    found = FeatureCache(tmp_path / "cache").of(split).take(np.arange(16))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_a_cached_run_equals_an_uncached_one(runs):
    images, cached = (figures(runs / name, "train/loss") for name in ("images", "cached"))
    assert len(images) == 3
    np.testing.assert_allclose(cached, images, rtol=1e-6, atol=1e-6)


def test_scst_from_the_cache_equals_scst_from_images(runs, workspace, cache, tmp_path):
    """The rollouts too, token by token; its parent was trained from images."""
    found = []
    for more in ({}, {"data__features": cache}):
        argv = settings(
            workspace, tmp_path / "run", "scst", init_from=runs / "images", scst__samples=2, **more
        )
        found.append(first_loss(argv))
    loss, cached = found
    np.testing.assert_allclose(cached.total, loss.total, rtol=1e-6, atol=1e-6)
    for name in ("samples/tokens", "greedy/tokens"):
        np.testing.assert_array_equal(cached.arrays[name], loss.arrays[name])


def test_a_cached_run_holds_no_tower(runs):
    counted = [
        json.loads((runs / n / "run.json").read_text())["parameters"] for n in ("images", "cached")
    ]
    assert counted[0]["trained"] == counted[1]["trained"] == counted[1]["total"]
    assert counted[0]["total"] > counted[0]["trained"]


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_halved_features_are_as_near_as_their_bits(runs, workspace, cache, tmp_path, dtype, step):
    assert encode(workspace, tmp_path / "half", f"--dtype={dtype}") == 0
    split = open_split(workspace / "data", "train")
    every = np.arange(len(split))
    whole, half = (
        FeatureCache(path).of(split).take(every).astype(np.float64)
        for path in (cache, tmp_path / "half")
    )
    assert np.abs(half - whole).max() > 0
    assert (np.abs(half - whole) <= step * np.abs(whole) + 1e-7).all()
    argv = settings(workspace, tmp_path / "run", data__features=tmp_path / "half")
    found = first_loss(argv)
    loss = float(found.total / found.weight)
    first = figures(runs / "cached", "train/loss")[0]
    assert 0 < abs(loss - first) < 2 * step * first


def test_evaluation_reads_the_runs_cache(runs, tmp_path, monkeypatch):
    """The same captions; and with a cache no image is decoded."""
    run = runs / "cached"
    argv = [f"--checkpoint={run}", "--split=val", "--limit=8"]
    assert evaluate.main([*argv, "--features=none", f"--out={tmp_path / 'encoded'}"]) == 0

    def never(self, image, *, name=None):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Preprocessor, "pixels", never)
    assert evaluate.main([*argv, f"--out={tmp_path / 'cached'}"]) == 0
    texts = [(tmp_path / n / "predictions.json").read_text() for n in ("encoded", "cached")]
    assert texts[0] == texts[1] and len(json.loads(texts[0])) == 8
    sources = [
        json.loads((tmp_path / n / "scores.json").read_text())["source"]
        for n in ("encoded", "cached")
    ]
    assert "features" not in sources[0] and sources[1]["features"].endswith("cache")


# -------------------------------------------------------------------------------------- mistakes


def test_a_stale_cache_is_refused(workspace, cache, tmp_path, capsys):
    """Before a device is touched, by name, and nothing is left behind."""

    def refused(**overrides):
        argv = settings(workspace, tmp_path / "run", data__features=cache, **overrides)
        line = mistake(capsys, train.main, argv)
        assert not (tmp_path / "run").exists()
        return line

    other = workspace / "models/clip-b"
    assert "stale: other weights (" in refused(model__encoder=other)
    assert "patch tokens of layer -2 then, patch tokens of layer -1 now" in refused(
        model__vision_layer=-1
    )
    assert "pooled features now" in refused(model__projector="pooled")
    changed = pathlib.Path(shutil.copytree(workspace / "models/clip-l", tmp_path / "clip"))
    file = changed / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 2}))
    assert "stale: preprocessing resample 3 then, 2 now" in refused(model__encoder=changed)
    assert "config.model.encoder is not set; give the HF directory of the encoder" in refused(
        model__encoder=""
    )


def test_a_cache_without_the_split_is_refused(workspace, tmp_path, capsys):
    assert encode(workspace, tmp_path / "part", "--split=val") == 0
    argv = settings(workspace, tmp_path / "run", data__features=tmp_path / "part")
    assert "lacks 48 of the 48 images of 'train'" in mistake(capsys, train.main, argv)
    argv = settings(workspace, tmp_path / "run", data__features=tmp_path / "nothing")
    assert "does not exist" in mistake(capsys, train.main, argv)


def test_the_command(workspace, cache, tmp_path, capsys):
    capsys.readouterr()
    assert encode(workspace, cache) == 0
    assert "is complete already: 80 images x 4 x 32 float32 = 41.0 kB" in capsys.readouterr().out
    assert prepare.main(["features", f"--out={cache}", "--verify"]) == 0
    assert "files are as they were written" in capsys.readouterr().out
    spoilt = pathlib.Path(shutil.copytree(cache, tmp_path / "spoilt"))
    shard = spoilt / "val-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    argv = ["features", f"--out={spoilt}", "--verify"]
    assert "val-00000.npy is not as it was written" in mistake(capsys, prepare.main, argv)

    def wrong(*arguments):
        return mistake(capsys, prepare.main, ["features", f"--out={tmp_path / 'new'}", *arguments])

    data, clip = f"--data={workspace / 'data'}", f"--encoder={workspace / 'models/clip-l'}"
    assert "--data is missing" in wrong(clip)
    assert "give either --encoder=HF_DIR" in wrong(data)
    assert "--part=2/2; give I/N" in wrong(data, clip, "--part=2/2")
    assert "layer 9 of a tower of 2 layers" in wrong(data, clip, "--layer=9")
    assert "did you mean 'val'" in wrong(data, clip, "--split=vla")
    assert "--batch-size: it is 0; it must be at least 1" in wrong(data, clip, "--batch-size=0")
    assert "--import needs --ids" in wrong(data, "--import=x.npy")
    assert f"{spoilt} holds another" in mistake(
        capsys, prepare.main, ["features", f"--out={spoilt}", data, clip, "--pooled"]
    )
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------- of other encoders


def test_imported_features_train_a_captioner(workspace, tmp_path, capsys, on_one_device):
    """Another width and number of tokens than any CLIP here; no encoder is named."""
    dataset = workspace / "data"
    ids = [i for name in ("train", "val") for i in open_split(dataset, name).ids]
    array = np.random.default_rng(0).normal(size=(len(ids), 3, 20)).astype(np.float32)
    np.save(tmp_path / "dino.npy", array)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    cache = tmp_path / "cache"
    how = [f"--import={tmp_path / 'dino.npy'}", f"--ids={tmp_path / 'ids.json'}", f"--out={cache}"]
    command = ["features", f"--data={dataset}", *how]
    assert "lacks 16 of the 16 images of split 'test'" in mistake(capsys, prepare.main, command)
    assert prepare.main([*command, "--split=train", "--split=val"]) == 0
    run = tmp_path / "run"
    argv = settings(workspace, run, data__features=cache)
    assert "imported:dino" in mistake(capsys, train.main, argv)
    argv = settings(
        workspace, run, data__features=cache, model__encoder="", model__projector="pooled"
    )
    assert "set --config.model.projector=patch" in mistake(capsys, train.main, argv)
    how = {"data__features": cache, "model__encoder": "", "data__val_split": "val"}
    assert train.main(settings(workspace, run, **how)) == 0
    captioner = har_jax.load_captioner(run)
    texts = captioner.generate(array[-16:])
    evaluate_run(run, tmp_path / "eval", split="val", captioner=captioner)
    predictions = json.loads((tmp_path / "eval/predictions.json").read_text())
    assert [entry["caption"] for entry in predictions] == texts
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["caption"] for sample in samples] == texts[:8]  # of validation, while it trained
    with pytest.raises(UserError, match="cannot encode images; give an array of features"):
        captioner.generate([b"picture"])
    argv = [f"--checkpoint={run}", "--split=test", f"--out={tmp_path / 'no'}"]
    assert "lacks 16 of the 16 images of 'test'" in mistake(capsys, evaluate.main, argv)
    image = tmp_path / "a.png"
    image.write_bytes(open_split(dataset, "val")[0].image)
    argv = [f"--checkpoint={run}", str(image)]
    assert "was trained on imported features" in mistake(capsys, caption.main, argv)
