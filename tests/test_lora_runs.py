"""Runs with LoRA, from training to what others load: only adapters and projector learn, and PEFT,
transformers and we compute the same of them."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import peft
import pytest
import torch
import transformers
from PIL import Image

import har_jax
from har_jax import config_file, export, loading, train
from har_jax.checkpoint import Checkpoints
from har_jax.data.dataset import open_split
from har_jax.errors import UserError
from har_jax.interchange.families.mistral import load_mistral
from har_jax.loading.blueprint import draw
from har_jax.loading.weights import new_trained
from har_jax.models import lora
from har_jax.models.functional import part, split
from har_jax.sessions.assemble import assemble
from har_jax.sessions.plan import plan_session
from har_jax.sharding import make_mesh
from har_jax.training.run_dir import read_run
from tests.conftest import ROOT
from tests.helpers import long
from tests.lora import LORA, mistake
from tests.training.commands import train_arguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    """A few steps of MLE on data × fsdp × tensor."""
    here = tmp_path_factory.mktemp("runs") / "lora"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
        assert train.main(train_arguments(workspace, here, **LORA, **mesh)) == 0
    return here


@pytest.fixture(scope="module")
def captioner(run):
    return har_jax.load_captioner(run)


@pytest.fixture(scope="module")
def pixels(workspace, captioner):
    test = open_split(workspace / "data", "test")
    return captioner.preprocess([test[i].image for i in range(len(test))])


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The run in every format."""
    here = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ("peft", "llava", "mistral"):
            argv = [f"--checkpoint={run}", f"--out={here / name}", f"--format={name}"]
            assert export.main(argv) == 0
    return here


def test_only_adapters_and_the_projector_are_saved_and_moved(workspace, run, captioner):
    checkpoints = Checkpoints(run, read_only=True)
    path = checkpoints.directory / str(checkpoints.latest())
    saved = ocp.StandardCheckpointer().restore(path / "params")
    assert all(lora.is_factor(n) or n.startswith("projector.") for n in saved)
    assert sum(map(lora.is_factor, saved)) == 2 * (2 * 5 + 1)
    moments = jax.tree_util.tree_flatten_with_path(
        ocp.StandardCheckpointer().metadata(path / "optimizer").item_metadata
    )[0]
    named = {str(leaf[-1]) for leaf, _ in moments if "lm." in str(leaf) or "vision." in str(leaf)}
    assert named and all("lora_" in name for name in named)
    assert all(np.abs(v).max() > 0 for n, v in saved.items() if n.endswith("lora_b"))
    info = json.loads((run / "run.json").read_text())
    assert info["lora"] == {"rank": 4, "alpha": 8.0, "targets": LORA["model__lora__targets"]}
    assert info["parameters"]["trained"] == sum(v.size for v in saved.values())
    assert info["base"]["lm"]["fingerprint"].startswith("sha256:")
    # What is loaded as the decoder is the base, bit by bit.
    loaded = part(captioner.params, "lm")
    for name, value in split(load_mistral(workspace / "models/mistral"))[1].items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_scst_goes_on_with_the_adapters(workspace, run, captioner, tmp_path):
    settings = {**LORA, "init_from": run, "model__frozen_dtype": "bfloat16"}
    argv = train_arguments(workspace, tmp_path / "scst", "scst", **settings)
    arguments, overrides = train.parse(argv)
    plan = plan_session(config_file.load(arguments.config, overrides), tmp_path / "scst")
    begun = assemble(plan)
    trained = begun.initial_params()
    assert trained.keys() == set(begun.blueprint.trained)
    for name, value in trained.items():
        np.testing.assert_array_equal(value, captioner.params[name], err_msg=name)
    assert not begun.frozen.keys() & trained.keys()
    assert {**begun.frozen, **trained}.keys() == captioner.params.keys()
    assert {x.dtype for x in begun.frozen.values()} == {jnp.dtype(jnp.bfloat16)}
    # The blueprint says so beforehand.
    shapes = begun.blueprint.shapes
    assert all(x.dtype == shapes[n].dtype for n, x in (begun.frozen | trained).items())


def test_new_adapters_are_born_in_their_shards(workspace, run):
    config, _ = read_run(run)
    mesh = make_mesh(2, 2, 2)
    blueprint = draw(config.model)
    drawn = new_trained(blueprint, 0, mesh)
    shardings = blueprint.shardings(mesh)
    assert drawn.keys() == set(blueprint.trained)
    assert all(x.sharding == shardings[n] for n, x in drawn.items())
    a = drawn["lm.layers.0.attn.q.lora_a"]
    assert a.addressable_shards[0].data.shape == (a.shape[0] // 2, 4)
    assert not np.array_equal(a, drawn["lm.layers.1.attn.q.lora_a"])
    assert not any(x.any() for n, x in drawn.items() if n.endswith("lora_b"))

    layout = dataclasses.replace(config.model, scan_layers=True)
    stacked = new_trained(draw(layout), 0, mesh)
    kinds = (*(f"layers.attn.{n}" for n in "qkvo"), "layers.mlp.down", "lm_head")
    assert {n for n in stacked if n.endswith("lora_a")} == {f"lm.{n}.lora_a" for n in kinds}
    a = stacked["lm.layers.attn.q.lora_a"]
    assert a.shape == (2, 32, 4) and not np.array_equal(a[0], a[1])
    assert a.addressable_shards[0].data.shape == (2, 16, 4)


def test_merged_and_unmerged_write_the_same(run, captioner, pixels):
    merged = har_jax.load_captioner(run, merge=True)
    assert not any(map(lora.is_factor, merged.params)) and merged.config.model.lora.rank == 0
    ours, n = captioner.generate_tokens(pixels)
    theirs, m = merged.generate_tokens(pixels)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(n, m)
    assert len({tuple(row) for row in ours}) > 1


def teacher_forced(captioner, pixels, tokens):
    def run(params, pixels, tokens):
        c = captioner.structure.merge(params)
        prefix = c.project(c.encode(pixels))
        return prefix, c.logits(c.prefill(prefix), tokens[:, None])[:, 0]

    return jax.device_get(jax.jit(run)(captioner.params, pixels, jnp.asarray(tokens)))


def config_of(captioner):
    return captioner.structure.merge(captioner.params).config


def close(ours, theirs):
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()


def test_peft_upon_the_base_gives_the_same_logits(workspace, captioner, pixels, exported):
    base = transformers.AutoModelForCausalLM.from_pretrained(workspace / "models/mistral")
    tokens, _ = captioner.generate_tokens(pixels)
    prefix, ours = teacher_forced(captioner, pixels, tokens)
    ids = torch.tensor(tokens, dtype=torch.long)
    bos = torch.full((len(ids), 1), captioner.tokenizer.bos_id)
    embed = base.get_input_embeddings()

    def logits(model):
        inputs = torch.cat([embed(bos), torch.tensor(prefix), embed(ids[:, :-1])], 1)
        with torch.no_grad():
            return model(inputs_embeds=inputs).logits[:, prefix.shape[1] :].numpy()

    plain = logits(base)
    model = peft.PeftModel.from_pretrained(base, exported / "peft").eval()
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 8.0)
    assert config.base_model_name_or_path == str(workspace / "models/mistral")
    assert config.target_modules == {
        "lm_head", "mlp.down_proj", *(f"self_attn.{x}_proj" for x in "qkvo"),
    }  # fmt: skip
    saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert len(saved) == 2 * (2 * 5 + 1) and any(v.abs().max() > 0 for v in saved.values())
    close(ours, logits(model))
    assert np.abs(plain - ours).max() > 1e-2 * np.abs(ours).max()  # the adapters matter
    # PEFT's own merge is ours.
    merged = model.merge_and_unload().state_dict()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported / "mistral").state_dict()
    assert merged.keys() == theirs.keys()
    for name, value in merged.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-6)


def test_what_peft_saved_loads_here(workspace, captioner, pixels, exported, tmp_path):
    """Ours back again, with what lies beside it; and adapters that PEFT wrote itself."""
    tokens, _ = captioner.generate_tokens(pixels)
    again = har_jax.load_captioner(exported / "peft")
    assert again.config.model.lora.rank == 4 and again.config.data.max_tokens == 12
    assert again.params.keys() == captioner.params.keys()
    for name, value in captioner.params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)
    assert config_of(again) == config_of(captioner)

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(workspace / "models/mistral")
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "up_proj", "lm_head"], init_lora_weights=False,
        layers_to_transform=[1], use_rslora=True,
    )  # fmt: skip
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = har_jax.load_captioner(
        encoder=workspace / "models/clip-l",
        lm=workspace / "models/mistral",
        projector=exported / "peft",
        adapter=tmp_path / "theirs",
    )
    names = {n.removeprefix("lm.") for n in loaded.params if lora.is_factor(n)}
    linears = ("layers.1.attn.q", "layers.1.mlp.up", "lm_head")
    assert names == {f"{x}.lora_{y}" for x in linears for y in "ab"}

    @jax.jit
    def logits(params):
        lm = loaded.structure.merge(params).lm
        hidden, _ = lm.prefill(lm.embed(jnp.asarray(tokens)))
        return lm.logits(hidden)

    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    close(np.asarray(logits(loaded.params)), wanted)


def test_llava_holds_the_merged_decoder(captioner, pixels, exported, tmp_path):
    """transformers writes what the unmerged captioner writes; loaded here, it is what it was."""
    tokens, _ = captioner.generate_tokens(pixels)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(exported / "llava").eval()
    p = captioner.structure.merge(captioner.params).config.visual_tokens
    ids = torch.tensor([[captioner.tokenizer.bos_id, *[model.config.image_token_id] * p]])
    with torch.no_grad():
        written = model.generate(
            input_ids=ids.repeat(len(pixels), 1),
            pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2),
        )[:, ids.shape[1] :].numpy()
    padded = np.full_like(tokens, captioner.tokenizer.eos_id)
    padded[:, : written.shape[1]] = written
    np.testing.assert_array_equal(padded, tokens)

    whole = lora.merged(captioner.params, 8 / 4)
    rewritten = tmp_path / "rewritten"  # by transformers, under whatever names it writes today
    model.save_pretrained(rewritten)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(exported / "llava" / name, rewritten / name)
    theirs = har_jax.load_captioner(rewritten).params
    again = har_jax.load_captioner(exported / "llava")
    assert theirs.keys() == whole.keys()
    assert all(np.array_equal(theirs[name], value) for name, value in whole.items())
    assert again.params.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)
    assert config_of(again) == config_of(captioner)


@pytest.mark.parametrize("devices", [1, *long([8])])
def test_the_example_of_the_documentation(devices, run, captioner, tmp_path, monkeypatch, request):
    """docs/library.md, as it stands, on these miniature models and one device, or on eight."""
    if devices == 1:
        request.getfixturevalue("on_one_device")
        monkeypatch.setattr("har_jax.sharding.make_mesh", loading.captioner.make_mesh)
    text = (ROOT / "docs/library.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(code) == 6
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/scst").symlink_to(run)
    (tmp_path / "photos").mkdir()
    drawn = np.random.default_rng(3).integers(0, 256, (5, 30, 40, 3), np.uint8)
    for i, picture in enumerate(drawn):
        Image.fromarray(picture).save(tmp_path / f"photos/{i}.jpg")
    shutil.copyfile(tmp_path / "photos/2.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = {}
    for block in code[:3]:
        exec(compile(block, "docs/library.md", "exec"), found)
    assert found["text"] == found["texts"][2] and len(found["texts"]) == 5
    assert found["caption"].text == found["text"]
    assert len(found["best"]) == len(found["drawn"]) == 3
    np.testing.assert_allclose(found["again"], found["scores"], rtol=1e-4)
    assert found["own"].shape == (5, 2) and found["tokens"].shape[0] == 2
    for block in code[3:]:
        exec(compile(block, "docs/library.md", "exec"), found)
    params, pixels = found["captioner"].params, found["pixels"]
    tokens, lengths = captioner.generate_tokens(pixels)
    np.testing.assert_array_equal(found["tokens_alone"], tokens)
    assert found["tokens"].shape == tokens.shape and found["mesh"].size == devices
    assert found["texts"] == captioner.decode_texts(found["tokens"], found["lengths"])
    # Greedy captions are likelier than with another first word, and equal rows are equal.
    np.testing.assert_array_equal(found["logp"][:, 0], found["logp"][:, 1])
    other = tokens.copy()
    other[:, 0] = np.roll(tokens[:, 0] + 1, 1)
    both, ends = (jnp.stack([x, y], axis=1) for x, y in ((tokens, other), (lengths, lengths)))
    logp = np.asarray(found["score"](params, pixels, both, ends))
    differ = tokens[:, 0] != other[:, 0]
    assert differ.all() and (logp[:, 0] > logp[:, 1]).mean() > 0.5


def test_another_dtype_is_that_of_everything(run, captioner):
    loaded = har_jax.load_captioner(run, dtype="bfloat16")
    assert {x.dtype for x in loaded.params.values()} == {jnp.dtype(jnp.bfloat16)}
    assert loaded.structure.merge(loaded.params).compute_dtype == jnp.bfloat16
    assert {n: x.sharding for n, x in loaded.params.items()} == {
        n: x.sharding for n, x in captioner.params.items()
    }
    for name, value in jax.device_get(captioner.params).items():
        np.testing.assert_array_equal(loaded.params[name], value.astype(jnp.bfloat16), err_msg=name)


# ---------------------------------------------------------------------------------- mistakes


def test_scst_must_have_the_adapters_of_its_parent(workspace, run, tmp_path, capsys):
    for changed in ({"model__lora__rank": 8}, {"model__lora__targets": "attn.q"}):
        argv = train_arguments(
            workspace, tmp_path / "run", "scst", init_from=run, **{**LORA, **changed}
        )
        key = next(iter(changed)).replace("__", ".")
        assert f"was trained with {key}=" in mistake(capsys, train, *argv)
    assert not (tmp_path / "run").exists()


def test_directories_that_do_not_fit(workspace, exported, tmp_path):
    parts = {"encoder": workspace / "models/clip-l", "lm": workspace / "models/mistral"}
    with pytest.raises(UserError, match=r"has no projector.safetensors; give a run"):
        har_jax.load_captioner(**parts, projector=exported / "mistral")
    with pytest.raises(UserError, match=r"lacks projector; give a run or an exported directory"):
        har_jax.load_captioner(**parts)
    with pytest.raises(UserError, match=r"'mistral', which alone is no captioner; .* encoder=DIR"):
        har_jax.load_captioner(exported / "mistral")
    with pytest.raises(UserError, match=r"is a LLaVA directory, which has its own lm"):
        har_jax.load_captioner(exported / "llava", lm=parts["lm"])
    with pytest.raises(UserError, match=r"dtype 'bfloat'.*did you mean 'bfloat16'"):
        har_jax.load_captioner(exported / "llava", dtype="bfloat")
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    for name in ("adapter_model.safetensors", "projector.safetensors", "projector_config.json"):
        (adapters / name).symlink_to(exported / "peft" / name)
    config = json.loads((exported / "peft" / "adapter_config.json").read_text())
    for key, value, said in (
        ("use_dora", True, r"use_dora=True \(only False is\)"),
        ("peft_type", "IA3", r"PEFT adapter of type 'IA3'"),
        ("r", 5, r"where r=5"),
    ):
        (adapters / "adapter_config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=said):
            har_jax.load_captioner(adapters)
