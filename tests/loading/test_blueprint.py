"""A captioner described from two `config.json`s: no weights, no dataset, no device."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from har_jax.config import Config, DataConfig, LoraConfig, ModelConfig
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, hub
from har_jax.loading.blueprint import draw
from har_jax.loading.parts import read_parts
from har_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """The published configurations of ViT-L/14 and Mistral-7B, as transformers writes them,
    alone."""
    here = tmp_path_factory.mktemp("configs")
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    clip = transformers.CLIPConfig(
        vision_config={**vision, "num_attention_heads": 16, "patch_size": 14},
        projection_dim=768,
    )
    for name, config in (("encoder", clip), ("lm", transformers.MistralConfig())):
        (here / name).mkdir()
        values = {**config.to_dict(), "model_type": config.model_type}
        (here / name / "config.json").write_text(json.dumps(values))
    return here


def settings(directories, **changes):
    where = {"encoder": str(directories / "encoder"), "lm": str(directories / "lm")}
    return ModelConfig(**where, **changes)


def counted(shapes, prefix):
    return sum(x.size for name, x in shapes.items() if name.startswith(prefix))


def test_the_full_size_in_the_dtypes_of_a_run(directories):
    """7,241,732,096 parameters of Mistral-7B and 303 million of the tower, none allocated."""
    model = settings(directories, frozen_dtype="bfloat16", lora=LoraConfig(rank=16))
    blueprint = draw(model)
    shapes = blueprint.shapes
    adapters = 32 * 16 * (4096 * 2 + (4096 + 1024) * 2 + 4096 * 2)
    assert counted(shapes, "lm.") == 7_241_732_096 + adapters
    assert counted(shapes, "vision.") == 303_179_776
    assert counted(shapes, "projector.") == (1024 + 1) * 4096 + (4096 + 1) * 4096
    for name, x in shapes.items():
        learns = name.startswith("projector.") or "lora_" in name
        assert blueprint.is_trained(name) == learns
        assert x.dtype == (jnp.float32 if learns else jnp.bfloat16), name
    assert blueprint.config.visual_tokens == 256
    assert (blueprint.config.bos_id, blueprint.config.eos_ids) == (1, (2,))


@pytest.mark.parametrize(
    "changes,decoder",
    [({}, "float32"), ({"param_dtype": "bfloat16"}, "bfloat16"), ({"train_lm": False}, "bfloat16")],
)
def test_the_decoder_has_the_dtype_of_what_it_is(directories, changes, decoder):
    """Its own parameters' where it learns, the frozen ones' where it does not."""
    blueprint = draw(settings(directories, frozen_dtype="bfloat16", scan_layers=True, **changes))
    kernel = blueprint.shapes["lm.layers.attn.q.kernel"]
    assert kernel.shape == (32, 4096, 32, 128) and kernel.dtype == decoder
    assert blueprint.shapes["vision.layers.attn.q.kernel"].dtype == "bfloat16"
    assert blueprint.is_trained("lm.layers.attn.q.kernel") == blueprint.model.train_lm


def test_batches_and_shardings(directories):
    blueprint = draw(settings(directories))
    config = Config(batch_size=64, data=DataConfig(max_tokens=40), model=blueprint.model)
    batch = {name: (x.shape, str(x.dtype)) for name, x in blueprint.batch(config).items()}
    assert batch == {
        "image": ((64, 224, 224, 3), "float32"),
        "image_id": ((64,), "int32"),
        "tokens": ((64, 5, 40), "int32"),
        "lengths": ((64, 5), "int32"),
    }
    with pytest.raises(UserError, match="max_tokens is 0"):
        blueprint.batch(config.changed(**{"data.max_tokens": 0}))
    mesh = make_mesh(1, 4, 2)
    trained = blueprint.abstract_trained(mesh)
    assert trained.keys() == set(blueprint.trained)
    local = trained["lm.lm_head.kernel"].sharding.shard_shape((4096, 32_000))
    assert local == (1024, 16_000)


def test_a_batch_is_what_the_pipeline_makes(workspace):
    from har_jax.data.dataset import open_split
    from har_jax.data.pipeline import TrainBatches

    where = {
        name: str(workspace / "models" / d)
        for name, d in (("encoder", "clip-l"), ("lm", "mistral"))
    }
    parts = read_parts(ModelConfig(**where))
    data = DataConfig(max_tokens=12, captions_per_image=3)
    made = next(
        TrainBatches(
            open_split(workspace / "data", "train"),
            parts.preprocessor,
            parts.tokenizer,
            batch_size=8,
            captions_per_image=3,
            max_tokens=12,
            seed=0,
        )
    )
    described = parts.blueprint.batch(Config(batch_size=8, data=data))
    assert {n: x.shape for n, x in described.items()} == {n: x.shape for n, x in made.items()}
    on_device = {n: jax.dtypes.canonicalize_dtype(x.dtype) for n, x in made.items()}
    assert {n: x.dtype for n, x in described.items()} == on_device


def test_a_directory_is_looked_for_once(workspace, monkeypatch):
    """A name on the hub may mean another snapshot a minute later."""
    asked = []

    def snapshot(name):
        asked.append(tuple(name))
        return workspace / "models" / name.repo.split("/")[1]

    monkeypatch.setattr(hub, "fetch", snapshot)
    parts = read_parts(ModelConfig(encoder="org/clip-l", lm="org/mistral@v1.0"))
    assert parts.identity["lm"]["fingerprint"].startswith("sha256:")
    assert sorted(asked) == [("org/clip-l", None), ("org/mistral", "v1.0")]


def test_a_hash_is_kept_beside_the_files(workspace, tmp_path, monkeypatch):
    import os
    import shutil

    directory = tmp_path / "lm"
    shutil.copytree(workspace / "models/mistral", directory)
    (directory / hf_dir.FINGERPRINT).unlink(missing_ok=True)
    file = directory / "model.safetensors"
    os.utime(file)  # copytree keeps the times of the workspace's files
    first = hf_dir.weights_fingerprint(directory)
    assert not (directory / hf_dir.FINGERPRINT).exists()  # too fresh: it might be written again
    os.utime(file, (1e9, 1e9))
    assert hf_dir.weights_fingerprint(directory) == first
    kept = (directory / hf_dir.FINGERPRINT).read_text()
    read = []
    monkeypatch.setattr(hf_dir, "_fingerprint", lambda d: read.append(d) or "sha256:new")
    assert hf_dir.weights_fingerprint(directory) == first and not read
    # Other bytes under another time are read; a note that is no JSON is passed over.
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert hf_dir.weights_fingerprint(directory) == "sha256:new"
    os.utime(file, (1e9, 1e9))
    (directory / hf_dir.FINGERPRINT).write_text(kept[:10])
    assert hf_dir.weights_fingerprint(directory) == "sha256:new" and len(read) == 2


def test_trained_parameters_are_born_as_described(workspace):
    from har_jax.loading.weights import load_frozen, new_trained

    where = {
        name: str(workspace / "models" / d)
        for name, d in (("encoder", "clip-l"), ("lm", "mistral"))
    }
    blueprint = draw(ModelConfig(**where, frozen_dtype="bfloat16", lora=LoraConfig(rank=2)))
    mesh = make_mesh(2, 2, 2)
    params = load_frozen(blueprint, mesh) | new_trained(blueprint, 0, mesh)
    shardings = blueprint.shardings(mesh)
    assert params.keys() == blueprint.shapes.keys()
    for name, x in params.items():
        like = blueprint.shapes[name]
        assert (x.shape, x.dtype, x.sharding) == (like.shape, like.dtype, shardings[name]), name
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in params.values())
