"""CLIP against transformers' PyTorch CLIP, in float32, on drawn configurations."""

import functools

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers import CLIPVisionModel

from har_jax.errors import UserError
from har_jax.interchange.families.clip import (
    VISION_FAMILY,
    clip_table,
    load_clip,
    load_vision,
    read_clip,
)
from har_jax.models.captioner import vision_features
from har_jax.models.encoders.clip import CLIP, CLIPConfig, TextConfig, VisionConfig, VisionTower
from har_jax.models.functional import part, split
from tests.helpers import drawn, jitted

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 1e-4  # of the output's scale


def draw_config(rng: np.random.Generator) -> dict:
    """A small `config.json`: odd sizes, both activations, images that patches do not fill."""
    activation = str(rng.choice(["quick_gelu", "gelu"]))
    projection = int(rng.integers(3, 20))

    def tower(**more) -> dict:
        heads = int(rng.integers(1, 5))
        return {
            "hidden_size": heads * int(rng.integers(3, 9)),
            "intermediate_size": int(rng.integers(5, 40)),
            "num_hidden_layers": int(rng.integers(1, 4)),
            "num_attention_heads": heads,
            "hidden_act": activation,
            "layer_norm_eps": float(rng.choice([1e-5, 1e-3])),
            "projection_dim": projection,
            **more,
        }

    patch = int(rng.integers(2, 9))
    image = patch * int(rng.integers(1, 5)) + int(rng.integers(0, patch))
    vocabulary = int(rng.integers(20, 90))
    return {
        "projection_dim": projection,
        "vision_config": tower(patch_size=patch, image_size=image),
        "text_config": tower(
            vocab_size=vocabulary,
            max_position_embeddings=int(rng.integers(6, 20)),
            # 2 is the legacy rule: the text ends at its highest id
            eos_token_id=int(rng.choice([2, vocabulary - 1, vocabulary - 4])),
            bos_token_id=0,
            pad_token_id=1,
        ),
    }


def random_torch_clip(config: dict, seed: int) -> transformers.CLIPModel:
    torch.manual_seed(seed)
    model = transformers.CLIPModel(transformers.CLIPConfig(**config)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.logit_scale.data.fill_(1.3)
    return model


def inputs(config: dict, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = config["vision_config"]["image_size"]
    text = config["text_config"]
    pixels = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    n = int(rng.integers(3, text["max_position_embeddings"] + 1))
    tokens = rng.integers(3, text["vocab_size"] - 5, (3, n))
    tokens[:, 0] = 0
    end = text["vocab_size"] - 1 if text["eos_token_id"] == 2 else text["eos_token_id"]
    for row, at in enumerate(rng.integers(1, n, 3)):
        tokens[row, at:] = end if row == 0 else 1
        tokens[row, at] = end
    return pixels, tokens


def assert_close(ours, theirs: torch.Tensor, what: str) -> None:
    ours, theirs = np.asarray(ours), theirs.numpy()
    assert ours.shape == theirs.shape, what
    scale = max(np.abs(theirs).max(), 1e-6)
    assert np.abs(ours - theirs).max() <= TOLERANCE * scale, what


@pytest.mark.parametrize("seed", drawn((0, 1, 3, 10), 40))
def test_parity_with_transformers(seed, tmp_path):
    rng = np.random.default_rng(seed)
    config = draw_config(rng)
    reference = random_torch_clip(config, seed)
    reference.save_pretrained(tmp_path)
    pixels, tokens = inputs(config, rng)
    torch_pixels = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = reference(
            pixel_values=torch_pixels, input_ids=torch.tensor(tokens), output_hidden_states=True
        )
        alone = CLIPVisionModel.from_pretrained(tmp_path)(torch_pixels, output_hidden_states=True)

    ours = load_clip(tmp_path)
    assert ours.config == read_clip(ours.config.to_hf())
    structure, params = split(ours)
    layer = int(rng.integers(-len(alone.hidden_states), len(alone.hidden_states)))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, pixels, tokens) -> dict:
        clip = structure.merge(params)
        return {
            "logits": clip(pixels, tokens),
            "image embedding": clip.image_embedding(pixels),
            "text embedding": clip.text_embedding(tokens),
            "text hidden": clip.text.hidden(tokens),
            "pooled": clip.vision.pooled(pixels),
            "hidden": clip.vision.hidden(pixels, layer),
            "patches": vision_features(clip.vision, pixels, "patch", layer),
        }

    wanted = {
        "logits": theirs.logits_per_image,
        "image embedding": theirs.image_embeds,
        "text embedding": theirs.text_embeds,
        "text hidden": theirs.text_model_output.last_hidden_state,
        "pooled": alone.pooler_output,
        "hidden": alone.hidden_states[layer],
        "patches": alone.hidden_states[layer][:, 1:],
    }
    for what, value in run(params, pixels, tokens).items():
        assert_close(value, wanted[what], what)


@pytest.mark.parametrize("projection", [False, True])
def test_the_vision_tower_alone_is_that_of_the_whole(projection, tmp_path):
    """From a CLIPModel, a CLIPVisionModel (other names) and a CLIPVisionModelWithProjection."""
    config = draw_config(np.random.default_rng(5))
    whole = random_torch_clip(config, 5)
    whole.save_pretrained(tmp_path / "whole")
    expected = part(split(load_clip(tmp_path / "whole"))[1], "vision")
    if not projection:
        expected.pop("projection.kernel")
    classes = [transformers.CLIPVisionModelWithProjection]
    classes += [] if projection else [CLIPVisionModel]
    sources = [tmp_path / "whole"]
    for cls in classes:
        sources.append(tmp_path / cls.__name__)
        cls.from_pretrained(tmp_path / "whole").save_pretrained(sources[-1])
    for source in sources:
        tower = load_vision(source, projection=projection)
        found = split(tower)[1]
        assert found.keys() == expected.keys()
        assert all((found[k] == expected[k]).all() for k in found)
    assert VISION_FAMILY.read_config(sources[-1])[0] == tower.config


def test_defaults_are_those_of_transformers():
    theirs = transformers.CLIPConfig().to_dict()
    ours = CLIPConfig().to_hf()
    assert ours["projection_dim"] == theirs["projection_dim"]
    for name in ("text_config", "vision_config"):
        for key, value in ours[name].items():
            assert theirs[name][key] == value, (name, key)


def test_an_old_config_dict_replaces_the_new_one():
    hf = {
        "text_config": {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 7},
        "text_config_dict": {"hidden_size": 32, "num_attention_heads": 4},
        "vision_config": {"patch_size": 14},
        "vision_config_dict": None,
    }
    ours, theirs = read_clip(hf), transformers.CLIPConfig(**hf)
    assert ours.text.hidden_size == theirs.text_config.hidden_size == 32
    assert ours.text.vocab_size == theirs.text_config.vocab_size
    assert ours.vision.patch_size == theirs.vision_config.patch_size == 14


@pytest.mark.parametrize(
    ("name", "vision", "text", "projection"),
    [
        (
            "ViT-L/14",
            VisionConfig(1024, 4096, 24, 16, image_size=224, patch_size=14),
            TextConfig(768, 3072, 12, 12),
            768,
        ),
        ("ViT-B/32", VisionConfig(), TextConfig(), 512),
    ],
)
def test_full_size_parameter_counts(name, vision, text, projection):
    """Counted abstractly on both sides: nothing is allocated."""

    def count(model) -> int:
        return sum(v.get_value().size for _, v in nnx.split(model)[1].flat_state())

    config = CLIPConfig(vision, text, projection)
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**config.to_hf()))
    ours = nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0)))
    assert count(ours) == sum(p.numel() for p in theirs.parameters())
    tower = nnx.eval_shape(lambda: VisionTower(vision, rngs=nnx.Rngs(0)))
    assert count(tower) == sum(p.numel() for p in theirs.vision_model.parameters())
    if name == "ViT-L/14":
        assert count(tower) == 303_179_776  # openai/clip-vit-large-patch14's vision tower


def test_bfloat16_stays_within_its_own_error(tmp_path):
    config = draw_config(np.random.default_rng(3))
    random_torch_clip(config, 3).save_pretrained(tmp_path)
    pixels, tokens = inputs(config, np.random.default_rng(3))
    exact = load_clip(tmp_path)
    coarse = load_clip(tmp_path, dtype="bfloat16")
    a = jitted(exact, lambda clip: clip.vision.hidden(pixels, -2))
    b = jitted(coarse, lambda clip: clip.vision.hidden(pixels.astype("bfloat16"), -2))
    assert b.dtype == "bfloat16"
    assert np.abs(a - b.astype("float32")).max() <= 0.05 * np.abs(a).max()
    assert jitted(coarse, lambda clip: clip.text_embedding(tokens)).dtype == "float32"


def test_bad_use_is_explained():
    vision = VisionTower(VisionConfig(8, 8, 2, 2, image_size=8, patch_size=4), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"10x8x3.*8x8x3"):
        vision.hidden(np.zeros((1, 10, 8, 3), np.float32))
    with pytest.raises(UserError, match="layer 3 of a tower of 2"):
        vision.hidden(np.zeros((1, 8, 8, 3), np.float32), layer=3)
    with pytest.raises(UserError, match="no projection"):
        vision.embed(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(UserError, match="did you mean 'quick_gelu'"):
        VisionConfig(hidden_act="quickgelu")
    with pytest.raises(UserError, match="not a multiple"):
        TextConfig(hidden_size=10, num_attention_heads=3)


def test_the_table_names_every_parameter_once():
    rows = clip_table()
    assert len({r.hf for r in rows}) == len(rows) == len({r.path for r in rows})
