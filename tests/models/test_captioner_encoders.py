"""Captioners whose encoder is a SigLIP or a DINOv2: from directories to captions."""

import json
import shutil

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

import har_jax
from har_jax import prepare, train
from har_jax.config import Config, ModelConfig
from har_jax.data.features.cache import FeatureCache
from har_jax.errors import UserError
from har_jax.loading.blueprint import draw
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.loading.parts import read_parts
from har_jax.loading.weights import load_base, new_trained
from har_jax.sessions.budget import prefix_length
from har_jax.sharding import make_mesh
from tests.conftest import ROOT
from tests.helpers import long
from tests.models.encoders import shaken
from tests.models.test_encoders import channels_first
from tests.training.commands import train_arguments

SIDE = 32
SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=8)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """{name: directory}, as transformers saves them."""
    root = tmp_path_factory.mktemp("encoders")
    made = {
        "siglip": transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**SIZES, intermediate_size=32, image_size=SIDE)
        ),
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, image_size=48)),
        "registers": transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, image_size=48)
        ),
    }
    side = {"height": SIDE, "width": SIDE}
    for name, model in made.items():
        shaken(model, 0).save_pretrained(root / name)
        processor = (
            transformers.SiglipImageProcessor(size=side)
            if name == "siglip"
            else transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=side)
        )
        processor.save_pretrained(root / name)
    return {name: root / name for name in made}


def settings(encoders, workspace, name, **more) -> ModelConfig:
    lm = str(workspace / "models/mistral")
    return ModelConfig(encoder=str(encoders[name]), lm=lm, **more)


EXTRA = {"siglip": 0, "dinov2": 1, "registers": 5}


@pytest.mark.parametrize("name", EXTRA)
def test_encode_project_and_generate(encoders, workspace, name):
    """On a mesh, with the layers of everything scanned; features are transformers' own."""
    mesh = make_mesh(2, 2, 2)
    model = settings(encoders, workspace, name, vision_layer=-1, scan_layers=True)
    parts = read_parts(model)
    assert parts.blueprint.config.features_shape == (16, 24)
    params = load_base(parts.blueprint, mesh) | new_trained(parts.blueprint, 0, mesh)
    config = Config(model=model)
    loaded = LoadedCaptioner(
        parts.blueprint.placed_on(mesh), params, parts.tokenizer, parts.preprocessor, mesh, config
    )
    rng = np.random.default_rng(0)
    pixels = loaded.preprocess([_png(rng) for _ in range(4)])
    texts = loaded.generate(pixels, max_tokens=5)
    assert len(texts) == 4 and len(loaded.generate(pixels, method="beam", beams=2, max_tokens=5))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda p, x: loaded.structure.merge(p).encode(x))(params, pixels)
    theirs = transformers.AutoModel.from_pretrained(encoders[name]).eval()
    wanted = theirs(channels_first(pixels), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(
        found, wanted[:, EXTRA[name] :].detach().numpy(), rtol=1e-4, atol=1e-4
    )


def _png(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))


@pytest.mark.parametrize("name", EXTRA)
def test_p_is_right_everywhere(encoders, workspace, name):
    for tokens, more in {"patches": 0, "all": EXTRA[name], "after_first": EXTRA[name] - 1}.items():
        blueprint = draw(settings(encoders, workspace, name, vision_tokens=tokens))
        assert blueprint.config.visual_tokens == 16 + more
        assert prefix_length(blueprint) == 16 + more + 1
        assert blueprint.config.features_shape[0] == 16 + more
    pooled = draw(settings(encoders, workspace, name, projector="pooled", vision_tokens="all"))
    assert pooled.config.features_shape == (1, 24)


def test_what_an_encoder_lacks_is_told_before_a_device_is_touched(encoders, workspace, tmp_path):
    with pytest.raises(UserError, match="DINOv2 feature layer -4 of a tower of 2 layers"):
        draw(settings(encoders, workspace, "dinov2", vision_layer=-4))
    bare = shutil.copytree(encoders["siglip"], tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"vision_use_head": False}))
    model = settings({"siglip": bare}, workspace, "siglip", projector="pooled")
    with pytest.raises(UserError, match="this SigLIP has none"):
        draw(model)


@pytest.mark.parametrize("tokens", ["patches", *long(["all"])])
def test_training_on_a_cache_and_on_images(encoders, workspace, tmp_path, monkeypatch, tokens):
    """A feature cache of such an encoder is that of the run's own tokens, and no other's."""
    monkeypatch.chdir(ROOT)
    cache = tmp_path / "cache"
    made = prepare.main([
        "features", f"--data={workspace / 'data'}", f"--encoder={encoders['registers']}",
        f"--out={cache}", f"--vision-tokens={tokens}",
    ])  # fmt: skip
    assert made == 0
    assert FeatureCache(cache).shape == (16 + EXTRA["registers"] * (tokens == "all"), 24)

    def arguments(name, **more):
        more = {"model__encoder": encoders["registers"], "data__val_split": "", **more}
        return train_arguments(workspace, tmp_path / name, steps=2, log_every=1, **more)

    own = {"model__vision_tokens": tokens}
    assert train.main(arguments("images", **own)) == 0
    assert train.main(arguments("cached", data__features=cache, **own)) == 0
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("images", "cached")
    ]
    losses = [[row["train/loss"] for row in run if "train/loss" in row] for run in rows]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    other = "all" if tokens == "patches" else "patches"
    refused = arguments("stale", data__features=cache, model__vision_tokens=other)
    assert train.main(refused) == 2
    captioner = har_jax.load_captioner(tmp_path / "images")
    assert captioner.blueprint.config.vision_tokens == tokens
    assert len(captioner.generate([_png(np.random.default_rng(1))], max_tokens=4)) == 1
