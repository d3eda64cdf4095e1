"""Settings of LoRA that cannot be, and a run without it."""

import numpy as np
import pytest
import transformers

import har_jax
from har_jax import config_file, export, train
from har_jax.checkpoint import Checkpoints
from har_jax.loading.parts import read_parts
from har_jax.loading.weights import new_trained
from har_jax.sharding import make_mesh
from har_jax.training.run_dir import open_run, run_info
from tests.lora import LORA, mistake
from tests.training.commands import train_arguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"targets": "attention.q"}, "'attention.q' matches no linear layer of the decoder"),
        ({"targets": "attn.(q"}, "'attn.(q' is no regular expression (missing ), unterminated"),
        ({"rank": -1}, "config.model.lora.rank is -1"),
        ({"alpha": 0}, "config.model.lora.alpha is 0"),
    ],
)
def test_settings_that_cannot_be(workspace, tmp_path, capsys, changes, said):
    settings = {**LORA, **{f"model__lora__{key}": value for key, value in changes.items()}}
    argv = train_arguments(workspace, tmp_path / "run", **settings)
    assert said in mistake(capsys, train, *argv)
    assert not (tmp_path / "run").exists()


def test_a_run_without_adapters_has_none_to_export(tmp_path, capsys, workspace):
    settings = train_arguments(workspace, tmp_path / "run", model__train_lm=False)
    arguments, overrides = train.parse(settings)
    config = config_file.load(arguments.config, overrides)
    parts = read_parts(config.model)
    open_run(tmp_path / "run", config, run_info(config, base=parts.identity))
    projector = new_trained(parts.blueprint, 0, make_mesh())
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, projector, {"count": np.zeros(2)}, {})
    checkpoints.close()
    argv = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'hf'}", "--format=peft"]
    said = mistake(capsys, export, *argv)
    assert "was trained without LoRA" in said
    # Its projector fits its base: parts that lie apart are the same captioner.
    whole = har_jax.load_captioner(tmp_path / "run")
    parts = har_jax.load_captioner(
        encoder=workspace / "models/clip-l",
        lm=workspace / "models/mistral",
        projector=tmp_path / "run",
    )
    assert parts.params.keys() == whole.params.keys()
    for name, value in whole.params.items():
        np.testing.assert_array_equal(parts.params[name], value, err_msg=name)
