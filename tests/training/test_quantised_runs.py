"""Runs on a base in 8 or 4 bits: loaded shard by shard, trained by LoRA, exported dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import har_jax
from har_jax import config_file, export, train
from har_jax.checkpoint import Checkpoints
from har_jax.config import LoraConfig
from har_jax.interchange.families.mistral import load_mistral
from har_jax.loading.blueprint import draw
from har_jax.loading.weights import load_base
from har_jax.models import quantised
from har_jax.models.functional import part, split
from har_jax.sharding import make_mesh
from har_jax.training.run_dir import read_run
from tests.conftest import ROOT
from tests.training.commands import train_arguments

LORA = {
    "model__lora__rank": 4,
    "model__lora__targets": "attn.(q|k|v|o)",
    "optim__lr": 3e-2,
    "optim__name": "adamw",
    "data__val_split": "",
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    """A few steps of MLE on an int8 base, over eight devices, in microbatches."""
    here = tmp_path_factory.mktemp("runs") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        settings = {**LORA, "model__frozen_dtype": "int8", "model__scan_layers": True}
        settings |= {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
        assert train.main(train_arguments(workspace, here, **settings)) == 0
    return here


def blueprint_of(workspace, **changes):
    arguments, overrides = train.parse(train_arguments(workspace, workspace / "none", **LORA))
    config = config_file.load(arguments.config, overrides)
    return draw(config.changed(**{f"model.{key}": value for key, value in changes.items()}).model)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
@pytest.mark.parametrize("stacked", [False, True], ids=["plain", "scan"])
def test_shards_are_parts_of_the_whole(workspace, scheme, stacked):
    """What each device reads and quantises is what quantising the whole kernel gives."""
    blueprint = blueprint_of(workspace, frozen_dtype=scheme, scan_layers=stacked)
    dense = split(load_mistral(workspace / "models/mistral"))[1]
    for mesh in (make_mesh(1, 8, 1), make_mesh(2, 2, 2)):
        loaded = part(load_base(blueprint, mesh, vision=False), "lm")
        shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in loaded.items()}
        layouts = quantised.layouts(shapes)
        assert layouts
        for name, layout in layouts.items():
            if stacked:
                before, after = name.split("layers.")
                names = [f"{before}layers.{i}.{after}" for i in range(layout.shape[0])]
                values = np.stack([dense[n] for n in names])
            else:
                values = np.asarray(dense[name])
            codes, scales = quantised.quantise(values, layout)
            np.testing.assert_array_equal(loaded[f"{name}.codes"], codes, err_msg=name)
            np.testing.assert_array_equal(loaded[f"{name}.scales"], scales, err_msg=name)


def test_only_adapters_and_the_projector_are_saved(run):
    checkpoints = Checkpoints(run, read_only=True)
    config, info = read_run(run)
    trained = draw(config.model).trained
    assert all(n.endswith((".lora_a", ".lora_b")) or n.startswith("projector.") for n in trained)
    dense = draw(config.changed(**{"model.frozen_dtype": "bfloat16"}).model)
    assert info["parameters"]["total"] == sum(x.size for x in dense.shapes.values())
    assert checkpoints.latest()


def test_a_run_goes_on_as_scst_and_is_resumed(workspace, run, tmp_path):
    settings = {**LORA, "model__frozen_dtype": "int8", "model__scan_layers": True, "init_from": run}
    settings |= {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "microbatches": 2}
    argv = train_arguments(workspace, tmp_path / "scst", "scst", **settings)
    assert train.main([*argv, "--stop-after=2"]) == 0
    assert train.main(argv) == 0
    assert (
        Checkpoints(tmp_path / "scst", read_only=True).latest()
        == read_run(tmp_path / "scst")[0].steps
    )


def test_an_export_has_the_adapters_upon_the_dense_weights(workspace, run, tmp_path):
    """Not upon what 8 bits left of them."""
    out = tmp_path / "llava"
    assert export.main([f"--checkpoint={run}", f"--out={out}", "--step=latest"]) == 0
    captioner = har_jax.load_captioner(out)
    trained = har_jax.load_captioner(run, step="latest").params
    dense = split(load_mistral(workspace / "models/mistral"))[1]
    name = "layers.{}.attn.q"
    stacked = {k.removeprefix("lm."): v for k, v in trained.items() if k.startswith("lm.")}
    config = read_run(run)[0].model.lora
    for i in (0, 1):
        a = stacked["layers.attn.q.lora_a"][i]
        b = stacked["layers.attn.q.lora_b"][i]
        wanted = dense[f"{name.format(i)}.kernel"].astype(jnp.float32)
        wanted = wanted + config.alpha / config.rank * jnp.tensordot(a, b, axes=1)
        got = captioner.params[f"lm.{name.format(i)}.kernel"]
        np.testing.assert_allclose(
            got.astype(jnp.float32), wanted, atol=2e-2 * float(jnp.abs(wanted).max())
        )


def test_captions_are_near_those_of_the_dense_base(workspace, run):
    """The largest change of a log-probability stays small beside the log-probabilities."""
    quantised_, dense = (
        har_jax.load_captioner(run, step="latest", dtype=d) for d in (None, "float32")
    )
    tokens = np.random.default_rng(0).integers(3, 20, (8, 2, 6))
    features = np.random.default_rng(1).standard_normal((8, *dense.blueprint.config.features_shape))

    def scores(captioner):
        def score(params):
            model = captioner.structure.merge(params)
            cache = model.prefill(model.project(jnp.asarray(features, jnp.float32)))
            return model.score(cache, jnp.asarray(tokens))

        with jax.set_mesh(captioner.mesh):
            return np.asarray(jax.jit(score)(captioner.params), np.float32)

    change = np.abs(scores(quantised_) - scores(dense))
    assert 0 < change.max() < 0.5


def test_a_decoder_that_learns_is_not_quantised(workspace, tmp_path, capsys):
    settings = {**LORA, "model__frozen_dtype": "nf4", "model__lora__rank": 0}
    assert train.main(train_arguments(workspace, tmp_path / "run", **settings)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "config.model.frozen_dtype=nf4 is of a frozen decoder" in line
    assert not (tmp_path / "run").exists()
    assert LoraConfig().rank == 0
