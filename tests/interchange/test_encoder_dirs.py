"""Directories of SigLIP and DINOv2: exact round trips, shards, and what is refused."""

import json

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from har_jax import load_captioner, prepare
from har_jax.errors import UserError
from har_jax.interchange import peft
from har_jax.interchange.families.dinov2 import DINOV2_FAMILY
from har_jax.interchange.families.registry import ENCODERS, read_encoder, two_towers
from har_jax.interchange.families.siglip import SIGLIP_VISION
from har_jax.interchange.families.siglip_towers import SIGLIP_FAMILY, load_siglip, save_siglip
from har_jax.models.functional import split
from har_jax.settings import tell_renamed
from har_jax.sharding import make_mesh
from tests.models.encoders import draw_dinov2, draw_siglip, torch_dinov2, torch_siglip

KINDS = {
    "siglip": (load_siglip, save_siglip, transformers.SiglipModel),
    "dinov2": (DINOV2_FAMILY.load, DINOV2_FAMILY.save_module, transformers.Dinov2Model),
    "registers": (
        DINOV2_FAMILY.load,
        DINOV2_FAMILY.save_module,
        transformers.Dinov2WithRegistersModel,
    ),
}


def torch_model(kind: str, seed: int):
    rng = np.random.default_rng(seed)
    if kind == "siglip":
        return torch_siglip(draw_siglip(rng), seed)
    return torch_dinov2(draw_dinov2(rng, kind == "registers"), seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_round_trip_is_exact(kind, seed, tmp_path):
    """Theirs, ours, theirs: no tensor changes a bit; and ours, ours: not a byte of the file."""
    load, save, cls = KINDS[kind]
    theirs = torch_model(kind, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
        assert tensor.tobytes() == after[name].tobytes(), name
    again, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted, found = theirs.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert all((wanted[name] == found[name]).all() for name in wanted)
    save(load(tmp_path / "ours"), tmp_path / "twice")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_arrive_in_their_shards(kind, shape, tmp_path):
    torch_model(kind, 2).save_pretrained(tmp_path)
    load, mesh = KINDS[kind][0], make_mesh(*shape)
    whole = split(load(tmp_path))[1]
    structure, params = split(load(tmp_path, mesh=mesh))
    wanted = structure.shardings(mesh)
    assert params.keys() == whole.keys()
    for name, value in params.items():
        assert value.sharding == wanted[name]
        np.testing.assert_array_equal(value, whole[name])


def test_the_vision_tower_alone_is_that_of_the_whole(tmp_path):
    """Of a SiglipModel and of a SiglipVisionModel, whatever its names begin with."""
    config = draw_siglip(np.random.default_rng(5), head=True)
    whole = torch_siglip(config, 5)
    whole.save_pretrained(tmp_path / "whole")
    part = transformers.SiglipVisionModel.from_pretrained(tmp_path / "whole")
    part.save_pretrained(tmp_path / "part")
    configs = [read_encoder(tmp_path / name) for name in ("whole", "part")]
    assert configs[0] == configs[1]
    found = [split(SIGLIP_VISION.load(tmp_path / name))[1] for name in ("whole", "part")]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *found))
    SIGLIP_VISION.save(configs[0], found[0], tmp_path / "ours")
    again, report = transformers.SiglipVisionModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = part.state_dict()
    assert all((wanted[name] == value).all() for name, value in again.state_dict().items())


@pytest.mark.parametrize("registers", [False, True])
def test_a_classifier_has_the_tower(registers, tmp_path):
    """`dinov2.` before the names, and a head behind, which is passed over."""
    theirs = torch_model("registers" if registers else "dinov2", 7)
    names = ("Dinov2WithRegistersForImageClassification", "Dinov2ForImageClassification")
    cls = getattr(transformers, names[0] if registers else names[1])
    model = cls(theirs.config)
    getattr(model, "dinov2_with_registers" if registers else "dinov2").load_state_dict(
        theirs.state_dict()
    )
    model.save_pretrained(tmp_path / "classifier")
    theirs.save_pretrained(tmp_path / "alone")
    found = [split(DINOV2_FAMILY.load(tmp_path / name))[1] for name in ("classifier", "alone")]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *found))


def test_what_transformers_writes_loads_with_all_its_keys(tmp_path):
    for family, config in [
        (SIGLIP_FAMILY, transformers.SiglipConfig()),
        (SIGLIP_VISION, transformers.SiglipVisionConfig()),
        (DINOV2_FAMILY, transformers.Dinov2Config(out_features=["stage1"])),
        (DINOV2_FAMILY, transformers.Dinov2WithRegistersConfig()),
    ]:
        config.save_pretrained(tmp_path)
        family.read_config(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        family.read_config(tmp_path)  # defaults too


def refused(tmp_path, config: dict, read=read_encoder) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert len(str(error.value)) < 900 and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("model_type", ["siglip2", "siglip2_vision_model"])
def test_naflex_is_refused_by_what_differs(model_type, tmp_path):
    line = refused(tmp_path, {"model_type": model_type})
    assert "NaFlex" in line and "any shape and number of patches" in line
    assert "google/siglip2-base-patch16-224" in line
    assert all(repr(name) in line for name in ENCODERS)


def test_other_kinds_are_refused_with_those_that_are_not(tmp_path):
    for model_type in ("resnet", "vit", "dinov3_vit", None, 3):
        line = refused(tmp_path, {"model_type": model_type})
        assert repr(model_type) in line and all(repr(name) in line for name in ENCODERS)
    assert "rotary" in refused(tmp_path, {"model_type": "dinov3_vit"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "dinov2", "qkv_bias": False}, "qkv_bias=False (only True is)"),
        ({"model_type": "dinov2", "rope_theta": 3.0}, "rope_theta=3.0"),
        ({"model_type": "dinov2", "image_size": [224, 224]}, "image_size is [224, 224]"),
        ({"model_type": "dinov2_with_registers", "num_register_tokens": 0}, "num_register_tokens"),
        ({"model_type": "siglip", "vision_config": {"num_channels": 1}}, "images are read as RGB"),
        ({"model_type": "siglip", "vision_config": {"patch_size": 300}}, "larger than image_size"),
        ({"model_type": "siglip_vision_model", "hidden_act": "gelu_tanh"}, "did you mean"),
        ({"model_type": "siglip", "vision_config": {"model_type": "clip_vision_model"}},
         "model_type='clip_vision_model'"),
    ],
)  # fmt: skip
def test_bad_configurations(config, said, tmp_path):
    assert said in refused(tmp_path, config)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "siglip_vision_model"])
def test_no_text_tower(kind, tmp_path):
    line = refused(tmp_path, {"model_type": kind}, two_towers)
    assert "has no text tower" in line and "'clip' or 'siglip'" in line


def test_images_must_fit_the_tower(tmp_path):
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    line = refused(tmp_path, {"model_type": "siglip_vision_model", "image_size": 48})
    assert "makes images of 32x32, but this SigLIP takes 48x48" in line
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "siglip_vision_model", "image_size": 32})
    )
    assert read_encoder(tmp_path).n_patches == 4


def test_dinov2_reads_the_images_that_its_preprocessor_makes(tmp_path):
    """The published config.json says 518 where images are cropped to 224."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "dinov2", "image_size": 518, "patch_size": 14})
    )
    assert read_encoder(tmp_path).n_patches == 37**2
    transformers.BitImageProcessor(size={"shortest_edge": 256}).save_pretrained(tmp_path)
    config = read_encoder(tmp_path)
    assert (config.image_size, config.n_patches, config.trained_size) == (224, 256, 518)
    assert DINOV2_FAMILY.write(config)["image_size"] == 518


def test_a_projector_from_before_is_read(tmp_path):
    """Its file calls the encoder `clip`, and says nothing of which tokens it reads."""
    settings = {"projector": "patch", "prefix_tokens": 10, "projector_hidden": 0}
    settings |= {"vision_layer": -2, "prompt": "", "clip": "models/clip", "max_tokens": 9}
    kernels = {"linear_1.kernel": np.ones((4, 3), np.float32)}
    peft.save_projector(kernels, tmp_path, settings)
    found, tensors = peft.read_projector(tmp_path)
    assert found["encoder"] == "models/clip" and found["vision_tokens"] == "patches"
    assert list(tensors) == ["linear_1.weight"]
    both = peft.PROJECTOR_CONFIG
    (tmp_path / both).write_text(json.dumps(settings | {"encoder": "models/new"}))
    assert peft.read_projector(tmp_path)[0]["encoder"] == "models/new"


def test_the_old_name_of_the_encoder_is_read_by_prepare_and_by_load_captioner(caplog, tmp_path):
    tell_renamed.cache_clear()
    out = f"--out={tmp_path / 'out'}"
    assert prepare.main(["features", f"--data={tmp_path}", f"--clip={tmp_path}", out]) == 2
    with pytest.raises(UserError, match="lacks lm, projector"):
        load_captioner(clip=tmp_path)
    told = [r.getMessage() for r in caplog.records if "is now called" in r.getMessage()]
    assert told == [
        "--clip is now called --encoder; the old name is still read",
        "load_captioner(clip=) is now called encoder=; the old name is still read",
    ]
    tell_renamed.cache_clear()
