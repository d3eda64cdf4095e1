"""The same weights under every beginning of their names that transformers and PEFT have written."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from har_jax.config import LoraConfig, ModelConfig
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, llava, peft
from har_jax.interchange.families.mistral import load_mistral, save_mistral
from har_jax.interchange.families.registry import read_decoder
from har_jax.loading.blueprint import of_parts
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.functional import split
from har_jax.sharding import RULES, make_mesh
from tests.fuzz.hf_models import build

LAYOUTS = {
    "as written": {},
    "transformers 4.52 and 5": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
    "without vision_model": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
    "a bare decoder": {"language_model.model.": "language_model."},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build(root)
    return root


def rename(file, renames, out=None):
    tensors = safetensors.numpy.load_file(file)
    renamed = {}
    for name, value in tensors.items():
        old = next((old for old in renames if name.startswith(old)), "")
        renamed[renames.get(old, "") + name.removeprefix(old)] = value
    safetensors.numpy.save_file(renamed, out or file, {"format": "pt"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llava_in_every_layout(layout, models, tmp_path):
    made = shutil.copytree(models / "llava", tmp_path / "llava")
    rename(made / hf_dir.WEIGHTS, LAYOUTS[layout])

    def params(directory):
        config, _ = llava.read_llava_config(directory)
        blueprint = of_parts(ModelConfig(encoder="a", lm="b"), config, directory, directory)
        structure = blueprint.structure
        return llava.load_llava(structure, blueprint.config, directory, make_mesh(), RULES)

    found, wanted = params(made), params(models / "llava")
    assert found.keys() == wanted.keys()
    assert all((np.asarray(found[k]) == np.asarray(wanted[k])).all() for k in found)


def test_a_mistral_without_its_first_part(tmp_path):
    config = dataclasses.replace(
        MistralConfig(), vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
    )  # fmt: skip
    save_mistral(Mistral(config, rngs=nnx.Rngs(0)), tmp_path)
    wanted = split(load_mistral(tmp_path))[1]
    rename(tmp_path / hf_dir.WEIGHTS, {"model.": ""})
    found = split(load_mistral(tmp_path))[1]
    assert all((np.asarray(found[k]) == np.asarray(wanted[k])).all() for k in wanted)
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**text, "num_hidden_layers": 250}))
    with pytest.raises(UserError, match=r"and 2,2\d\d more") as error:
        load_mistral(tmp_path)
    assert len(str(error.value)) < 1000


# ------------------------------------------------------------------------------------------- PEFT


@pytest.fixture
def adapters(models, tmp_path):
    return shutil.copytree(models / "peft", tmp_path / "peft")


def read(models, adapters):
    return peft.read_adapters(adapters, read_decoder(models / "mistral"))


def configure(adapters, **changes):
    file = adapters / peft.ADAPTER_CONFIG
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize(
    "renames",
    [
        {"base_model.model.model.": "base_model.model."},
        {"base_model.model.model.": "base_model.model.model.language_model."},
        {"base_model.model.model.": "base_model.model.language_model.model."},
    ],
    ids=str,
)
def test_adapters_upon_other_wrappings(renames, models, adapters):
    config, wanted = read(models, adapters)
    wanted = {name: np.array(tensor.map()) for name, (_, tensor) in wanted.items()}
    rename(adapters / peft.ADAPTER, renames)
    again, found = read(models, adapters)
    assert again == config and found.keys() == wanted.keys()
    for name, (_, tensor) in found.items():
        np.testing.assert_array_equal(tensor.map(), wanted[name])


def test_tensors_that_name_their_adapter(models, adapters):
    config, wanted = read(models, adapters)
    tensors = safetensors.numpy.load_file(adapters / peft.ADAPTER)
    named = {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()}
    safetensors.numpy.save_file(named, adapters / peft.ADAPTER)
    again, found = read(models, adapters)
    assert again == config and found.keys() == wanted.keys()
    safetensors.numpy.save_file({**named, **tensors}, adapters / peft.ADAPTER)
    with pytest.raises(UserError, match="more than one adapter of"):
        read(models, adapters)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' (it may have changed"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"loftq_config": {"bits": 4}}, "loftq_config"),
        ({"r": "absent"}, "lacks r, without which"),
        ({"lora_alpha": "absent"}, "lacks lora_alpha, without which"),
        ({"r": None}, "r is None: needs int"),
        ({"lora_alpha": None}, "lora_alpha is None: needs float"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan: needs float"),
        ({"r": 3}, "of shape [2, 32], where r=3"),
        ({"use_dora": True}, "use_dora=True (only False is)"),
        ({"modules_to_save": ["embed_tokens"]}, "(weights that were trained whole)"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"no_such_key": 2}, "no_such_key=2"),
        ({"peft_type": "IA3"}, "PEFT adapter of type 'IA3'"),
    ],
    ids=str,
)
def test_adapters_that_compute_something_else_are_refused(changes, said, models, adapters):
    configure(adapters, **changes)
    with pytest.raises(UserError) as error:
        read(models, adapters)
    assert said in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_model.model.model.embed_tokens.weight", "saved whole, which would replace"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "an adapter of embeddings"),
        ("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", "of 2 layers does not"),
    ],
)
def test_tensors_that_are_no_adapters_of_ours_are_named(name, said, models, adapters):
    file = adapters / peft.ADAPTER
    tensors = safetensors.numpy.load_file(file) | {name: np.zeros((2, 32), np.float32)}
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError) as error:
        read(models, adapters)
    assert f"{name}, " in str(error.value) and said in str(error.value)


def test_half_an_adapter_is_refused(models, adapters):
    file = adapters / peft.ADAPTER
    tensors = safetensors.numpy.load_file(file)
    tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match=r"layers\.1\.attn\.q without its lora_A"):
        read(models, adapters)


def test_what_peft_writes_by_default_is_read(models, adapters):
    import peft as theirs

    kept = LoraConfig(2, 4.0, "attn.q")
    config = theirs.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]).to_dict()
    (adapters / peft.ADAPTER_CONFIG).write_text(json.dumps(config, default=list))
    found = read(models, adapters)[0]
    assert (found.rank, found.alpha) == (kept.rank, kept.alpha)
