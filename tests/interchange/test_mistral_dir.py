"""Mistral directories: a long text as transformers reads it, and exact round trips, in every layout
of the parameters. tests/families compares drawn configurations."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers import MistralForCausalLM

from har_jax.interchange import table
from har_jax.interchange.families.mistral import MISTRAL, load_mistral, save_mistral
from har_jax.interchange.safetensors_file import read_header
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.functional import split
from har_jax.models.layouts import convert
from har_jax.sharding import make_mesh
from tests.helpers import initialise

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 1e-4  # of the output's scale
LAYOUTS = [{}, dict(scan_layers=True)]


def draw_config(rng: np.random.Generator) -> dict:
    """Odd sizes, 1 kv head to all, explicit head_dim, tied or not, windows shorter than a text."""
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * int(rng.integers(1, 4))
    return {
        "vocab_size": int(rng.integers(11, 70)),
        "hidden_size": heads * 2 * int(rng.integers(1, 5)),
        "intermediate_size": int(rng.integers(5, 50)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": None if rng.random() < 0.3 else 2 * int(rng.integers(1, 9)),
        "hidden_act": str(rng.choice(["silu", "gelu", "gelu_pytorch_tanh"])),
        "rms_norm_eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(rng.choice([100.0, 10_000.0, 1_000_000.0])),
        },
        "sliding_window": None if rng.random() < 0.4 else int(rng.integers(1, 9)),
        "tie_word_embeddings": bool(rng.random() < 0.4),
        "attn_implementation": "eager",
    }


def random_torch_mistral(config: dict, seed: int) -> MistralForCausalLM:
    torch.manual_seed(seed)
    model = MistralForCausalLM(transformers.MistralConfig(**config)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def assert_close(ours, theirs: torch.Tensor, what: str) -> None:
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), what


def test_a_long_text(tmp_path):
    """Far beyond a window and all that the families' tests read (tests/families)."""
    rng = np.random.default_rng(0)
    config = {**draw_config(rng), "sliding_window": 7}
    reference = random_torch_mistral(config, 0)
    reference.save_pretrained(tmp_path)
    tokens = rng.integers(0, config["vocab_size"], (2, 300))
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens), output_hidden_states=True)
    structure, params = split(load_mistral(tmp_path))

    @jax.jit
    def run(params, tokens):
        model = structure.merge(params)
        hidden, _ = model.prefill(model.embed(tokens))
        return hidden, model.logits(hidden)

    hidden, logits = run(params, tokens)
    assert_close(hidden, theirs.hidden_states[-1], "hidden")
    assert_close(logits, theirs.logits, "logits")


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_what_we_save(tied, tmp_path):
    config = MistralConfig(
        vocab_size=37,
        hidden_size=20,
        intermediate_size=30,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
        rope_theta=500.0,
        sliding_window=4,
        tie_word_embeddings=tied,
    )
    structure, params = initialise(lambda key: Mistral(config, rngs=nnx.Rngs(key)), 1)
    ours = structure.merge(params)
    save_mistral(ours, tmp_path / "lm")
    theirs, report = MistralForCausalLM.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = np.arange(14).reshape(2, 7)

    @jax.jit
    def logits(params, tokens):
        model = structure.merge(params)
        return model.logits(model.prefill(model.embed(tokens))[0])

    wanted = theirs.eval()(torch.tensor(tokens)).logits
    assert_close(logits(params, tokens), wanted, "logits")
    again = load_mistral(tmp_path / "lm")
    assert again.config == config


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_mistral_7b_has_its_published_size(layout):
    """7,241,732,096 parameters, shaped and never allocated."""
    model = nnx.eval_shape(lambda: Mistral(MistralConfig(), rngs=nnx.Rngs(0), **layout))
    sizes = [v.get_value().size for _, v in nnx.split(model)[1].flat_state()]
    assert sum(sizes) == 7_241_732_096


def test_bfloat16_round_trip_is_exact(tmp_path):
    config = draw_config(np.random.default_rng(2))
    random_torch_mistral(config, 2).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    ours = load_mistral(tmp_path / "theirs", dtype=None)
    save_mistral(ours, tmp_path / "ours")
    again = load_mistral(tmp_path / "ours", dtype=None)
    a, b = split(ours)[1], split(again)[1]
    assert all(v.dtype == "bfloat16" for v in a.values())
    assert all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)
    theirs = MistralForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.dtype == torch.bfloat16


def test_options_change_no_weight(tmp_path):
    config = dataclasses.replace(
        MistralConfig(), vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    save_mistral(Mistral(config, rngs=nnx.Rngs(0)), tmp_path / "lm")
    a = split(load_mistral(tmp_path / "lm"))[1]
    b = split(load_mistral(tmp_path / "lm", remat="full"))[1]
    assert all((a[k] == b[k]).all() for k in a)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"hidden_size": 1024, "num_attention_heads": 16},
        {"hidden_size": 1024, "head_dim": 32, "sliding_window": None},
        {"num_key_value_heads": 4, "head_dim": None},
    ],
)
def test_a_config_without_keys_means_what_transformers_means(keys):
    ours = MISTRAL.read({"model_type": "mistral", **keys})
    theirs = transformers.MistralConfig(**keys)
    assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": ours.rope_theta}
    assert ours.rope_scaling is None
    both = {field.name for field in dataclasses.fields(ours)} & theirs.to_dict().keys()
    assert {"vocab_size", "num_key_value_heads", "head_dim", "sliding_window"} <= both
    for name in both:
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("mesh_shape", [(1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_over_a_mesh(layout, mesh_shape, tmp_path, monkeypatch):
    """Each shard is read from, and written to, its own places in the file, a few rows at a time."""
    config = {
        "vocab_size": 24,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    random_torch_mistral(config, 3).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr(table, "MAX_MAPPED_BYTES", 100)
    mesh = make_mesh(*mesh_shape)
    plain = split(load_mistral(tmp_path / "theirs", dtype=None))[1]
    model = load_mistral(tmp_path / "theirs", mesh=mesh, dtype=None, **layout)
    structure, params = split(model)
    wanted, shardings = convert(plain, structure.shapes), structure.shardings(mesh)
    assert params.keys() == wanted.keys()
    for name, value in params.items():
        assert value.sharding == shardings[name]
        assert value.dtype == "bfloat16"
        assert np.asarray(value).tobytes() == np.asarray(wanted[name]).tobytes(), name
    save_mistral(model, tmp_path / "ours")
    files = [tmp_path / d / "model.safetensors" for d in ("theirs", "ours")]
    before, after = ({n: t.map() for n, t in read_header(f).items()} for f in files)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == "bfloat16"
        assert tensor.shape == after[name].shape
        assert tensor.tobytes() == after[name].tobytes(), name
