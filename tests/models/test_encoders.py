"""SigLIP and DINOv2 against transformers' PyTorch, in float32, on drawn configurations."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from har_jax.errors import UserError
from har_jax.interchange.families.dinov2 import DINOV2_FAMILY
from har_jax.interchange.families.registry import load_encoder, read_encoder
from har_jax.interchange.families.siglip_towers import load_siglip
from har_jax.models.captioner import CaptionerConfig, vision_features
from har_jax.models.encoders.dinov2 import Dinov2Config
from har_jax.models.encoders.positions import bicubic
from har_jax.models.encoders.protocol import Encoder, EncoderConfig
from har_jax.models.encoders.siglip import SiglipVisionConfig
from har_jax.models.encoders.siglip_text import SiglipTextConfig
from har_jax.models.functional import split, structure_of
from tests.helpers import LM, drawn, initialise, jitted
from tests.models.encoders import (
    channels_first,
    draw_dinov2,
    draw_siglip,
    pixels_of,
    torch_dinov2,
    torch_siglip,
)
from tests.models.test_clip import assert_close


def run(module, *inputs, **wanted):
    """{name: function(module, *inputs)}, in one compiled program."""
    structure, params = split(module)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def all_of(params, *inputs):
        made = structure.merge(params)
        return {name: function(made, *inputs) for name, function in wanted.items()}

    return all_of(params, *inputs)


def hidden(*layers: int):
    """`hidden` of these layers, by their names, for `run`."""
    return {f"layer {i}": lambda tower, pixels, *_, i=i: tower.hidden(pixels, i) for i in layers}


def tower_of(directory, **options):
    """The tower alone, as a captioner has it."""
    config = read_encoder(directory)
    assert isinstance(config, EncoderConfig)
    structure = structure_of(lambda: config.build(rngs=nnx.Rngs(0), dtype="float32", **options))
    shapes, axes = structure.shapes, structure.logical_axes
    tower = structure.merge(load_encoder(shapes, axes, config, directory))
    assert isinstance(tower, Encoder)
    return tower


@pytest.mark.parametrize("seed", drawn((0, 2, 5), 60))
def test_siglip_is_that_of_transformers(seed, tmp_path):
    rng = np.random.default_rng(seed)
    config = draw_siglip(rng)
    reference = torch_siglip(config, seed)
    reference.save_pretrained(tmp_path)
    vision, text = config["vision_config"], config["text_config"]
    pixels = pixels_of(vision["image_size"], rng)
    tokens = rng.integers(0, text["vocab_size"], (3, text["max_position_embeddings"]))
    with torch.no_grad():
        theirs = reference.vision_model(channels_first(pixels), output_hidden_states=True)
        written = reference.text_model(torch.tensor(tokens))
    layers = {0, -1, -2, int(rng.integers(0, len(theirs.hidden_states)))}
    pools = vision["vision_use_head"]
    tower = tower_of(tmp_path)
    seen = hidden(*layers) | ({"pooled": lambda tower, x: tower.pooled(x)} if pools else {})
    for name, value in run(tower, pixels, **seen).items():
        number = int(name.removeprefix("layer ")) if name != "pooled" else None
        wanted = theirs.pooler_output if number is None else theirs.hidden_states[number]
        assert_close(value, wanted, name)
    both = {"hidden": lambda net, t, _: net.text.hidden(t)}
    both["embedding"] = lambda net, t, _: net.text.embed(t)
    if pools:
        both["logits"] = lambda net, t, x: net(x, t)
        with torch.no_grad():
            logits = reference(torch.tensor(tokens), channels_first(pixels)).logits_per_image
    else:
        assert theirs.pooler_output is None
        with pytest.raises(UserError, match="no pooling head"):
            tower.pooled(pixels)
    found = run(load_siglip(tmp_path), tokens, pixels, **both)
    assert_close(found["hidden"], written.last_hidden_state, "text")
    assert_close(found["embedding"], written.pooler_output, "text embedding")
    if pools:
        assert_close(found["logits"], logits, "logits")


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("seed", drawn((0, 1, 5, 11), 60))
def test_dinov2_is_that_of_transformers(seed, registers, tmp_path):
    rng = np.random.default_rng(1000 * registers + seed)
    config = draw_dinov2(rng, registers)
    reference = torch_dinov2(config, seed)
    reference.save_pretrained(tmp_path)
    pixels = pixels_of(config["reads"], rng)
    with torch.no_grad():
        theirs = reference(channels_first(pixels), output_hidden_states=True)
    side = {"height": config["reads"], "width": config["reads"]}
    transformers.BitImageProcessor(size={"shortest_edge": 9}, crop_size=side).save_pretrained(
        tmp_path
    )
    tower = tower_of(tmp_path)
    assert tower.config.n_extra + tower.config.n_patches == theirs.hidden_states[0].shape[1]
    layers = {0, -1, -2, int(rng.integers(0, len(theirs.hidden_states)))}
    found = run(tower, pixels, pooled=lambda tower, x: tower.pooled(x), **hidden(*layers))
    assert_close(found.pop("pooled"), theirs.pooler_output, "pooled")
    for name, value in found.items():
        assert_close(value, theirs.hidden_states[int(name.removeprefix("layer "))], name)


@pytest.mark.parametrize("averaging", [False, True])
def test_positions_are_resized_as_pytorch_resizes(averaging):
    for of, size in [(37, 16), (3, 7), (7, 3), (1, 4), (5, 1), (16, 17), (2, 2)]:
        table = np.random.default_rng(of).normal(size=(1, 3, of, of))  # in double precision
        wanted = torch.nn.functional.interpolate(
            torch.tensor(table), size=(size, size), mode="bicubic", antialias=averaging
        )
        resize = bicubic(size, of, averaging=averaging)
        found = np.einsum("ai,bj,ncij->ncab", resize, resize, table)
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["siglip", "dinov2", "registers"])
def test_a_scanned_tower_is_the_same(family, tmp_path):
    rng = np.random.default_rng(4)
    if family == "siglip":
        config = draw_siglip(rng, head=True)
        torch_siglip(config, 4).save_pretrained(tmp_path)
        side = config["vision_config"]["image_size"]
    else:
        config = draw_dinov2(rng, family == "registers")
        torch_dinov2(config, 4).save_pretrained(tmp_path)
        side = config["image_size"]
    pixels = pixels_of(side, rng)
    apart, scanned = tower_of(tmp_path), tower_of(tmp_path, scan_layers=True)
    assert any(name.startswith("layers.attn.") for name in split(scanned)[1])
    found, wanted = (run(tower, pixels, **hidden(-1, 0, 1)) for tower in (scanned, apart))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_which_tokens_are_read():
    sizes = dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    firsts = {
        Dinov2Config(**sizes, num_register_tokens=3): {"patches": 4, "all": 0, "after_first": 1},
        SiglipVisionConfig(**sizes): {"patches": 0, "all": 0, "after_first": 1},
    }
    pixels = pixels_of(8, np.random.default_rng(0))
    for config, first in firsts.items():
        structure, params = initialise(lambda key, c=config: c.build(rngs=nnx.Rngs(key)), 0)
        wanted = {
            kind: lambda tower, x, kind=kind: vision_features(tower, x, "patch", -1, kind)
            for kind in first
        }
        found = run(structure.merge(params), pixels, **wanted, **hidden(-1))
        assert found["layer -1"].shape == (2, config.n_extra + 4, 8)
        for kind, n in first.items():
            np.testing.assert_array_equal(found[kind], found["layer -1"][:, n:])
            shape = CaptionerConfig(vision=config, lm=LM, vision_tokens=kind).features_shape
            assert shape == found[kind].shape[1:]


def test_defaults_are_those_of_transformers():
    pairs = [
        (SiglipVisionConfig(), transformers.SiglipVisionConfig()),
        (SiglipTextConfig(), transformers.SiglipTextConfig()),
        (Dinov2Config(), transformers.Dinov2Config()),
        (DINOV2_FAMILY.read({"model_type": "dinov2_with_registers"}, ""),
         transformers.Dinov2WithRegistersConfig()),
    ]  # fmt: skip
    for ours, theirs in pairs:
        for name, value in dataclasses.asdict(ours).items():
            if hasattr(theirs, name) and value is not None:
                assert getattr(theirs, name) == value, (type(ours), name)


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("base", dict(), 86_580_480),
        ("giant", dict(hidden_size=1536, num_hidden_layers=40, num_attention_heads=24,
                       use_swiglu_ffn=True), 1_136_480_768),
    ],
)  # fmt: skip
def test_full_size_dinov2_parameter_counts(name, config, count):
    """Abstractly, on both sides: nothing is allocated. facebook/dinov2-NAME's."""
    with torch.device("meta"):
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, **config))
    ours = DINOV2_FAMILY.structure(Dinov2Config(image_size=518, **config), "float32")
    assert sum(p.numel() for p in theirs.parameters()) == count
    assert sum(x.size for x in ours.shapes.values()) == count


def test_bfloat16_stays_within_its_own_error(tmp_path):
    rng = np.random.default_rng(3)
    config = draw_dinov2(rng, True)
    torch_dinov2(config, 3).save_pretrained(tmp_path)
    pixels = pixels_of(config["image_size"], rng)
    exact, coarse = DINOV2_FAMILY.load(tmp_path), DINOV2_FAMILY.load(tmp_path, dtype="bfloat16")
    a, b = (
        jitted(tower, lambda tower, x=x: tower.hidden(x, -2))
        for tower, x in ((exact, pixels), (coarse, pixels.astype("bfloat16")))
    )
    assert b.dtype == "bfloat16"
    assert np.abs(a - b.astype("float32")).max() <= 0.05 * np.abs(a).max()


def test_bad_use_is_explained():
    with pytest.raises(UserError, match="SigLIP config: hidden_size 10 is not a multiple"):
        SiglipVisionConfig(hidden_size=10, num_attention_heads=3)
    tower = SiglipVisionConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    ).build(rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"10x8x3, but this SigLIP takes 8x8x3"):
        tower.hidden(np.zeros((1, 10, 8, 3), np.float32))
    with pytest.raises(UserError, match="SigLIP feature layer 3 of a tower of 2"):
        tower.hidden(np.zeros((1, 8, 8, 3), np.float32), 3)
    with pytest.raises(UserError, match="a DINOv2 is read here on squares"):
        Dinov2Config().reading(224, 280)


def test_attention_of_a_device_is_asked_for():
    """`attention` reaches every layer of a new tower."""
    config = SiglipVisionConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    tower = config.build(rngs=nnx.Rngs(0), attention="cudnn")
    assert [block.attn.kernel for block in tower.layers] == ["cudnn", "cudnn"]
