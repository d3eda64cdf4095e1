"""CLIP directories: exact round trips, and transformers loading what we write."""

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from har_jax.interchange.families.clip import load_clip, save_clip
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, VisionConfig
from tests.helpers import initialise
from tests.models.test_clip import assert_close, draw_config, random_torch_clip

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("seed", range(8))
def test_round_trip_is_exact(seed, tmp_path):
    config = draw_config(np.random.default_rng(seed))
    random_torch_clip(config, seed).save_pretrained(tmp_path / "theirs")
    save_clip(load_clip(tmp_path / "theirs"), tmp_path / "ours")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
        assert tensor.tobytes() == after[name].tobytes(), name


def test_transformers_loads_what_we_save(tmp_path):
    config = CLIPConfig(
        VisionConfig(12, 20, 2, 3, "gelu", image_size=14, patch_size=4),
        TextConfig(10, 14, 1, 2, vocab_size=30, max_position_embeddings=9, eos_token_id=29),
        projection_dim=7,
    )
    structure, params = initialise(lambda key: CLIP(config, rngs=nnx.Rngs(key)), 0)
    ours = structure.merge(params)
    save_clip(ours, tmp_path / "clip")
    theirs, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "clip", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert load_clip(tmp_path / "clip").config == config
    pixels = np.random.default_rng(0).normal(size=(2, 14, 14, 3)).astype(np.float32)
    tokens = np.array([[0, 5, 6, 29, 29], [0, 7, 29, 3, 4]])
    with torch.no_grad():
        out = theirs.eval()(
            pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2), input_ids=torch.tensor(tokens)
        )
    logits = jax.jit(lambda p, x, t: structure.merge(p)(x, t))(params, pixels, tokens)
    assert_close(logits, out.logits_per_image, "logits")
