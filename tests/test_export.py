"""`har_jax.export`: transformers, from files alone, writes the same captions as we do."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import har_jax
from har_jax import config as configs
from har_jax import export, train
from har_jax.checkpoint import Checkpoints
from har_jax.data.dataset import open_split
from har_jax.data.images import decode
from har_jax.files import write_json
from har_jax.inference import check_base, is_trained, read_foundation
from har_jax.interchange import hf_dir, llava
from har_jax.interchange.mistral import load_mistral
from har_jax.models.captioner import Captioner
from har_jax.models.functional import part, split
from har_jax.sharding import make_mesh
from har_jax.training.run_dir import open_run, run_info
from tests.conftest import ROOT
from tests.training.commands import train_arguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PROMPT = "a picture of"


def make_run(workspace, run, **model):
    """A run directory as training leaves it, of a captioner that was drawn and never trained."""
    changes = {f"model__{key}": value for key, value in model.items()}
    arguments, overrides = train.parse(train_arguments(workspace, run, **changes))
    config = configs.load(arguments.config, overrides)
    foundation = read_foundation(config.model)
    open_run(run, config, run_info(config, base=foundation.base))
    lm = {f"lm.{k}": v for k, v in split(load_mistral(workspace / "models/mistral"))[1].items()}
    drawn = split(Captioner(foundation.config, rngs=nnx.Rngs(5)))[1]
    # Large enough that the caption depends on the image.
    projector = {k: v * 4 for k, v in drawn.items() if k.startswith("projector.")}
    checkpoints = Checkpoints(run)
    params = {k: v for k, v in (lm | projector).items() if is_trained(k, config.model)}
    checkpoints.save(1, params, {"count": np.zeros(())}, {})
    checkpoints.wait()
    checkpoints.close()
    return run
