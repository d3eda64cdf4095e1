"""Reading and writing weights: shards, dtypes, meshes, and all that can be wrong with a file."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from har_jax.interchange import hf_dir, safetensors_file, table, weights
from har_jax.interchange.families.clip import load_clip, load_vision
from har_jax.interchange.families.mistral import MISTRAL, load_mistral, save_mistral
from har_jax.interchange.table import Row
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.functional import split
from har_jax.sharding import make_mesh
from tests.interchange.weight_files import (
    LM,
    NORM,
    message,
    put,
    random,
    same,
    shard,
    tensors_of,
)

# ------------------------------------------------------------------------------------- the format


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL"])
def test_files_are_those_of_the_reference_implementation(dtype, tmp_path):
    rng = np.random.default_rng(0)
    kind = safetensors_file.DTYPES[dtype]
    arrays = {
        "a": (rng.normal(size=(3, 5)) * 10).astype(kind),
        "b.c": np.array(3).astype(kind),
        "empty": np.zeros((0, 4), kind),
    }
    specs = {name: (a.shape, a.dtype) for name, a in arrays.items()}
    safetensors_file.write(tmp_path / "ours", specs, arrays.items())
    if dtype != "BF16":  # the reference has no numpy bfloat16 in all its versions
        theirs = safetensors.numpy.load_file(tmp_path / "ours")
        assert all(theirs[k].tobytes() == a.tobytes() for k, a in arrays.items())
        safetensors.numpy.save_file(arrays, tmp_path / "theirs")
        header = safetensors_file.read_header(tmp_path / "theirs")
        for name, array in arrays.items():
            mapped = header[name].map()
            assert mapped.shape == array.shape
            assert mapped.tobytes() == array.tobytes()
    again = safetensors_file.read_header(tmp_path / "ours")
    assert all(again[k].map().tobytes() == a.tobytes() for k, a in arrays.items())


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("d -> d", (5,)),
        ("->", ()),
        ("f d -> d f", (3, 4)),
        ("(n h) d -> d n h", (5, 2, 3)),
        ("d (n h) -> n h d", (2, 3, 5)),
        ("(n h) -> n h", (2, 3)),
        ("d c p q -> p q c d", (2, 2, 3, 5)),
    ],
)
def test_rows_are_undone_exactly(axes, shape):
    row = Row("x", "x", axes)
    value = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    there = row.write(value)
    assert there.shape == row.hf_shape(shape)
    assert (row.read(there, shape) == value).all()


def test_a_linear_is_transposed_and_split_by_heads():
    row = Row("x", "x", "(n h) d -> d n h")
    weight = np.arange(24.0).reshape(6, 4)  # HF: [out, in]
    kernel = row.read(weight, (4, 2, 3))
    x = np.ones(4)
    assert (np.einsum("d,dnh->nh", x, kernel).reshape(-1) == weight @ x).all()


# ------------------------------------------------------------------------------------- loading


def test_sharded_and_single_files_agree(saved, lm):
    shard(lm)
    assert same(load_mistral(lm), load_mistral(saved / "lm"))
    assert hf_dir.weights_fingerprint(lm) == hf_dir.weights_fingerprint(saved / "lm")


def test_large_models_are_written_in_several_files(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 4000)
    model = load_mistral(saved / "lm")
    save_mistral(model, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 1
    assert same(load_mistral(tmp_path / "many"), model)
    from transformers import MistralForCausalLM

    theirs = MistralForCausalLM.from_pretrained(tmp_path / "many").state_dict()
    norm = np.asarray(split(model)[1]["norm.scale"])
    assert (theirs["model.norm.weight"].numpy() == norm).all()
    monkeypatch.undo()
    save_mistral(model, tmp_path / "many")  # over the old: no stale shard remains
    assert [f.name for f in (tmp_path / "many").glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 2, 4), (8, 1, 1)])
def test_parameters_arrive_in_their_shards(saved, tmp_path, shape):
    mesh = make_mesh(*shape)
    whole = load_mistral(saved / "lm")
    structure, params = split(load_mistral(saved / "lm", mesh=mesh, dtype=jnp.bfloat16))
    wanted = structure.shardings(mesh)
    for name, value in params.items():
        assert value.sharding == wanted[name]
        exact = np.asarray(split(whole)[1][name]).astype(ml_dtypes.bfloat16)
        assert (np.asarray(value) == exact).all()
        n_parts = len({str(s.index) for s in value.addressable_shards})
        assert all(s.data.size * n_parts == value.size for s in value.addressable_shards)
    save_mistral(load_mistral(saved / "lm", mesh=mesh), tmp_path / "again")
    assert same(load_mistral(tmp_path / "again"), whole)


def test_nothing_is_allocated_beyond_the_parameters(saved, monkeypatch):
    """The model is shaped, not initialised: no random number is drawn."""
    monkeypatch.setattr(
        jax.random, "normal", lambda *a, **k: jnp.zeros(a[1] if len(a) > 1 else k["shape"])
    )
    assert same(load_mistral(saved / "lm"), load_mistral(saved / "lm"))


def test_buffers_and_repeated_heads_are_passed_over(saved, clip, tmp_path):
    tensors = tensors_of(clip)
    tensors["vision_model.embeddings.position_ids"] = np.arange(5)[None]
    tensors["text_model.embeddings.position_ids"] = np.arange(6)[None]
    put(clip, tensors)
    assert same(load_clip(clip), load_clip(saved / "clip"))
    load_vision(clip)
    tied = MistralConfig(**{**LM.__dict__, "tie_word_embeddings": True})
    save_mistral(random(Mistral, tied), tmp_path / "tied")
    tensors = tensors_of(tmp_path / "tied")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    put(tmp_path / "tied", tensors)
    assert load_mistral(tmp_path / "tied").lm_head is None


# ------------------------------------------------------------------------------------- bad input


def test_one_error_lists_everything_wrong(lm):
    tensors = tensors_of(lm)
    del tensors[NORM]
    tensors["lm_head.weight"] = np.zeros((32, 17), np.float32)
    tensors["model.layers.0.mlp.extra"] = np.zeros((2, 3), np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((24, 16), np.int32)
    put(lm, tensors)
    text = message(lambda: load_mistral(lm))
    assert "4 problem(s)" in text
    assert "model.norm.weight [16] is missing" in text
    assert "lm_head.weight is [32, 17] in the file and [32, 16] in the model" in text
    assert "model.layers.0.mlp.extra [2, 3] is unexpected" in text
    assert "up_proj.weight has the dtype I32" in text


def test_duplicates_and_broken_promises_of_an_index(lm):
    shard(lm)
    b = dict(safetensors.numpy.load_file(lm / "b.safetensors"))
    a = dict(safetensors.numpy.load_file(lm / "a.safetensors"))
    twice, gone = next(iter(a)), next(iter(b))
    b[twice] = a[twice]
    del b[gone]
    put(lm, b, "b.safetensors")
    text = message(lambda: load_mistral(lm))
    assert f"{twice} is duplicate, in a.safetensors and in b.safetensors" in text
    assert f"{gone} is missing from b.safetensors" in text
    (lm / "b.safetensors").unlink()
    assert "names b.safetensors, which is not in the directory" in message(lambda: load_mistral(lm))
    (lm / "model.safetensors.index.json").unlink()
    put(lm, b, "b.safetensors")
    assert "2 safetensors files and no" in message(lambda: load_mistral(lm))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_files(lm, keep):
    file = lm / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    text = message(lambda: load_mistral(lm))
    assert "model.safetensors is not a whole safetensors file" in text


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"x": 3}', b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
     b'{"x": {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 4]}}',
     b'{"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'],
)  # fmt: skip
def test_malformed_headers(lm, header):
    (lm / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    assert "model.safetensors" in message(lambda: load_mistral(lm))


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": ENTRY, "b": ENTRY}, "tensor 'b' shares bytes with another"),
        ({"a": {**ENTRY, "data_offsets": [8, 16]}}, "tensor 'a' leaves out 8 before it"),
        ({"a": ENTRY}, "its last 8 bytes belong to no tensor"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "tensor 'a': shape[0]: needs int, got float"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, "tensor 'a': shape[0]: needs int, got bool"),
        ({"a": {**ENTRY, "shape": [-1, -2]}}, "tensor 'a': shape[0]: needs int >= 0"),
        ({"a": {**ENTRY, "data_offsets": [0, 8, 16]}}, "tensor 'a': data_offsets: needs array"),
        ({"a": ENTRY, "__metadata__": {"format": 3}}, "__metadata__: [...]: needs str, got int"),
        ('{"a": %s, "a": %s}' % ((json.dumps(ENTRY),) * 2), "the key 'a' occurs twice"),
    ],
    ids=str,
)
def test_headers_that_the_reference_refuses(header, said, tmp_path):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    assert said in message(lambda: safetensors_file.read_header(file))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(file, "np").__enter__()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "a\0b"])
def test_an_index_names_files_of_its_directory_only(name, lm):
    shard(lm)
    file = lm / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {NORM: name}}))
    assert "which is no file in the directory" in message(lambda: load_mistral(lm))


def test_nans_are_refused_unless_asked_for(lm):
    tensors = tensors_of(lm)
    tensors[NORM][3] = np.nan
    put(lm, tensors)
    for mesh in (None, make_mesh(1, 8, 1)):
        text = message(lambda mesh=mesh: load_mistral(lm, mesh=mesh))
        assert NORM in text and "NaN" in text and "allow_nan" in text
    model = load_mistral(lm, allow_nan=True)
    assert np.isnan(np.asarray(split(model)[1]["norm.scale"])).sum() == 1


def test_another_family(lm, clip):
    assert "'mistral' where 'clip' is needed" in message(lambda: load_clip(lm))
    assert "'clip' where 'mistral' is needed" in message(lambda: load_mistral(clip))
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    assert "[32, 16] in the file and [32, 32] in the model" in message(lambda: load_mistral(lm))


def test_pickles_are_refused(lm):
    (lm / "model.safetensors").rename(lm / "pytorch_model.bin")
    text = message(lambda: load_mistral(lm))
    assert "pytorch_model.bin" in text and "unpickling runs code" in text and "save_pre" in text


def test_bad_directories(tmp_path, lm):
    assert "no directory" in message(lambda: load_mistral(tmp_path / "nowhere"))
    assert "is a file" in message(lambda: load_mistral(lm / "config.json"))
    (tmp_path / "empty").mkdir()
    assert "no config.json" in message(lambda: load_mistral(tmp_path / "empty"))
    (lm / "config.json").write_text("{")
    assert "not valid JSON" in message(lambda: load_mistral(lm))
    (lm / "config.json").write_text("[]")
    assert "needs object, got array" in message(lambda: load_mistral(lm))


# ------------------------------------------------------------------------------------- writing


def test_every_parameter_has_its_row():
    with pytest.raises(KeyError, match="nowhere"):
        table.find(MISTRAL.table, "layers.3.nowhere")
    row, name = table.find(MISTRAL.table, "layers.13.attn.q.kernel")
    assert name == "model.layers.13.self_attn.q_proj.weight"
    assert row.hf_shape((16, 4, 4)) == (16, 16)
