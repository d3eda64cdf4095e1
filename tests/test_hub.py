"""Names of the hub, and `export --push`, against a stand-in of the hub on this machine."""

import dataclasses
import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from huggingface_hub import ModelCard, constants
from PIL import Image

import har_jax
from har_jax import export
from har_jax.checkpoint import Checkpoints
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, hub, peft
from har_jax.interchange.families.mistral import load_mistral
from har_jax.loading import pins, start
from har_jax.loading.parts import read_parts
from har_jax.loading.sources import located, read_source
from har_jax.models.functional import prefixed, split
from har_jax.reports.card import CardSource, model_card
from har_jax.sessions.plan import plan_session
from har_jax.training.run_dir import check_run, open_run, read_run, run_info
from tests.conftest import ROOT
from tests.hub_server import READER, WRITER, serving
from tests.test_export import configure, load_llava


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The stand-in, which huggingface_hub asks; it has nothing in its cache, and no token."""
    monkeypatch.chdir(ROOT)
    with serving() as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": running.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # large files go by the LFS protocol
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        huggingface_hub.close_session()  # one is made anew, with these settings
        yield running
    huggingface_hub.close_session()


def refusal(call, *of, **how):
    with pytest.raises(UserError) as caught:
        call(*of, **how)
    assert len(str(caught.value).splitlines()) == 1
    assert WRITER not in str(caught.value) and READER not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------- names


def test_a_name_is_pinned_and_stays_where_the_branch_moves(server, monkeypatch):
    first = server.publish("me/lm", {"config.json": b"1", "pickle.bin": b"never"})
    name = hub.pinned("me/lm")
    assert name == f"me/lm@{first}" and hub.pinned(name) == name
    second = server.publish("me/lm", {"config.json": b"2"})
    assert hub.pinned("me/lm") == hub.pinned("me/lm@main") == f"me/lm@{second}" != name
    read = {key: (hf_dir.resolve(key) / "config.json").read_text() for key in (name, "me/lm")}
    assert read == {name: "1", "me/lm": "2"}
    assert [f.name for f in hf_dir.resolve(name).iterdir()] == ["config.json"]
    # Without the hub, the cache answers, of what a name meant last.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.pinned("me/lm") == f"me/lm@{second}"
    assert (hf_dir.resolve(name) / "config.json").read_text() == "1"


def test_what_the_hub_does_not_have(server, monkeypatch, tmp_path):
    server.publish("me/lm", {"config.json": b"1"})
    server.publish("me/hidden", {"config.json": b"1"}, private=True)
    server.publish("me/gated", {"config.json": b"1"}, gated=True)
    assert "does not exist or is private" in refusal(hf_dir.resolve, "me/none")
    assert "does not exist or is private" in refusal(hf_dir.resolve, "me/hidden")
    assert "has no revision 'v9'" in refusal(hf_dir.resolve, "me/lm@v9")
    assert "is gated: accept its licence" in refusal(hf_dir.resolve, "me/gated")
    said = refusal(har_jax.load_captioner, "me/none")
    assert said.startswith("there is no run directory 'me/none', and the hub's model of that name")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (hf_dir.resolve("me/hidden") / "config.json").read_text() == "1"
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "hf_unknown" not in refusal(hf_dir.resolve, "me/other")
    # A run that is not there is no matter of the hub.
    asked = len(server.asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "there is no run directory" in refusal(har_jax.load_captioner, "runs/none")
    assert len(server.asked) == asked


def test_a_hub_that_does_not_answer(server):
    server.publish("me/lm", {"config.json": b"1"})
    server.broken = "me/lm"
    assert "neither in the local cache nor reachable" in refusal(hf_dir.resolve, "me/lm")
    server.shutdown()
    server.server_close()
    assert "neither in the local cache nor reachable" in refusal(hf_dir.resolve, "me/lm")


# -------------------------------------------------------------------------------------- runs


def begin(workspace, run, **model):
    """A planned run, and its directory as training begins it."""
    config = configure(workspace, run, **model)
    plan = plan_session(config, run)
    info = run_info(plan.config, base=plan.parts.identity, hub=plan.hub)
    open_run(run, plan.config, info)
    return config, plan


def save(run, parts, step=1):
    """A checkpoint of what learns, drawn and never trained."""
    captioner = split(parts.blueprint.build(nnx.Rngs(5)))[1]
    lm = prefixed(split(load_mistral(parts.blueprint.decoder_dir))[1], "lm")
    # A projector large enough for the captions to depend on the images.
    drawn = {k: v * 4 if k.startswith("projector.") else v for k, v in captioner.items()}
    trained = {k: v for k, v in (drawn | lm).items() if parts.blueprint.is_trained(k)}
    checkpoints = Checkpoints(run)
    checkpoints.save(step, trained, {"count": np.zeros(2)}, {})
    checkpoints.wait()
    checkpoints.close()


def test_a_run_keeps_its_revisions(server, workspace, tmp_path):
    models = workspace / "models"
    vision = server.publish("org/clip", models / "clip-l")
    words = server.publish("org/lm", models / "mistral")
    names = {"encoder": "org/clip", "lm": "org/lm@main"}
    run = tmp_path / "mle"
    config, plan = begin(workspace, run, **names)
    pinned = (f"org/clip@{vision}", f"org/lm@{words}")
    assert (plan.config.model.encoder, plan.config.model.lm) == pinned
    then, info = read_run(run)
    assert (then.model.encoder, then.model.lm) == pinned
    assert info["hub"] == {"org/clip": vision, "org/lm@main": words}
    assert info["base"]["encoder"]["revision"] == vision
    # The branch moves, to other weights; the command that began the run resumes it.
    other = server.publish("org/clip", models / "clip-b")
    server.publish("org/lm", {"config.json": b"{}"})
    again = plan_session(config, run)
    assert again.config == plan.config
    assert check_run(run, again.config, run_info(again.config, base=again.parts.identity))
    # SCST that names the models as its parent did, or says them shorter, takes the parent's.
    parts = {"encoder": "org/clip", "lm": "org/lm"}
    scst = dataclasses.replace(
        config,
        stage="scst",
        init_from=str(run),
        model=dataclasses.replace(config.model, **parts),
        eval=dataclasses.replace(config.eval, clip_score="org/clip"),
    )
    child, asked = pins.pin(scst, tmp_path / "scst")
    assert (child.model.encoder, child.model.lm, child.eval.clip_score) == (*pinned, pinned[0])
    assert asked == {"org/clip": vision, "org/lm": words} and child.init_from == str(run)
    # A new run takes what the name means now; a revision that was said is taken at its word.
    fresh = configure(workspace, tmp_path / "new", encoder="org/clip", lm=pinned[1])
    assert pins.pin(fresh, tmp_path / "new")[0].model.encoder == f"org/clip@{other}"
    assert pins.pin(fresh, tmp_path / "new")[1] == {"org/clip": other}
    moved = configure(workspace, run, **(names | {"encoder": f"org/clip@{other}"}))
    plan = plan_session(moved, run)
    info = run_info(plan.config, base=plan.parts.identity)
    assert "was 'org/clip@" in refusal(check_run, run, plan.config, info)


def test_a_run_of_an_older_version_is_resumed(server, workspace, tmp_path):
    """Its names have no commits: they are left, and the hashes of weights tell."""
    server.publish("org/clip", workspace / "models/clip-l")
    run = tmp_path / "run"
    config = configure(workspace, run, encoder="org/clip")
    parts = read_parts(config.model)
    open_run(run, config, run_info(config, base=parts.identity))
    assert pins.pin(config, run) == (config, {})
    server.publish("org/clip", workspace / "models/clip-l")  # another commit, the same weights
    plan = plan_session(config, run)
    assert check_run(run, plan.config, run_info(plan.config, base=plan.parts.identity))


# -------------------------------------------------------------------------------------- push


@pytest.fixture(scope="module")
def exported(workspace, tmp_path_factory):
    """(a run that was evaluated, its export as a LLaVA)."""
    here = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        run = here / "run"
        save(run, begin(workspace, run)[1].parts)
        for name, step in (("test", 1), ("older", 7)):
            evaluation = run / "eval" / name
            evaluation.mkdir(parents=True)
            scores = {**SCORES, "source": {"step": step, "split": "test", "method": "greedy"}}
            (evaluation / "scores.json").write_text(json.dumps(scores))
        assert export.main([f"--checkpoint={run}", f"--out={here / 'out'}"]) == 0
    return run, here / "out"


SCORES = {
    "CIDEr": 1.25,
    "Bleu_4": 0.5,
    "METEOR": None,
    "n_images": 16,
    "signature": "CIDEr-D[n4]|with a bar",
    "warnings": ["a | warning\n# of two lines"],
    "confidence": {"level": 0.95, "intervals": {"CIDEr": [1.0, 1.5], "Bleu_4": [0.4, 0.625]}},
}


def test_what_was_pushed_can_be_loaded(
    server, exported, workspace, on_one_device, monkeypatch, capsys
):
    """By us and by transformers, from the hub's files alone; both write the run's captions."""
    run, out = exported
    monkeypatch.setenv("HF_TOKEN", WRITER)
    server.publish("me/captioner", {"model-00001-of-00002.safetensors": b"old", "notes": b"kept"})
    assert export.main([f"--out={out}", "--push=me/captioner"]) == 0
    commit = server.models["me/captioner"].refs["main"]
    printed = capsys.readouterr()
    assert f"me/captioner/commit/{commit}" in printed.out
    assert WRITER not in printed.out + printed.err
    there = server.models["me/captioner"].commits[commit]
    files = {f.name: f.read_bytes() for f in out.iterdir() if not f.name.startswith(".")}
    assert there == files | {"notes": b"kept"} and list(server.large.values()) == [
        files["model.safetensors"]
    ]
    assert len(server.models["me/captioner"].commits) == 2

    name, path = located("me/captioner")
    assert name == f"me/captioner@{commit}"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    captions = har_jax.load_captioner("me/captioner").generate(images)
    model, processor = load_llava(path), transformers.AutoProcessor.from_pretrained(path)
    inputs = processor(images=images, text=["<image>"] * 2, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    theirs = processor.batch_decode(ids, skip_special_tokens=True)
    assert captions == [text.strip() for text in theirs] and any(captions)
    # Training begins with it, and says which commit that was.
    config = configure(workspace, run.parent / "tuned")
    bare = dataclasses.replace(config.model, encoder="", lm="")
    config = dataclasses.replace(config, model=bare, init_from="me/captioner")
    config, asked = pins.pin(config, "nowhere")
    config, source = start.settled(config)
    assert source.kind == "llava" and config.init_from == config.model.lm == name
    assert asked == {"me/captioner": commit}


def test_a_push_that_fails_leaves_everything(server, exported, monkeypatch):
    out = exported[1]
    before = {f.name: f.stat().st_mtime_ns for f in out.iterdir()}

    def push(*more):
        return refusal(export.main.__wrapped__, [f"--out={out}", "--push=me/new", *more])

    assert "needs a token" in push() and not server.asked
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not take the token" in push() and "hf_wrong" not in push()
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "may not write to me/new" in push() and not server.models
    monkeypatch.setenv("HF_TOKEN", WRITER)
    server.broken = "/commit/main"
    said = push("--private")
    assert "answers with status 500" in said
    assert said.endswith(f"python -m har_jax.export --out={out} --push=me/new --private")
    assert server.models["me/new"].private
    assert not server.models["me/new"].commits[server.models["me/new"].refs["main"]]
    server.broken = ""
    server.publish("me/public", {})
    said = refusal(export.main.__wrapped__, [f"--out={out}", "--push=me/public", "--private"])
    assert "is there, and public" in said and len(server.models["me/public"].commits) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in push()
    assert before == {f.name: f.stat().st_mtime_ns for f in out.iterdir()}


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("README.md", None, "it has no README.md"),
        ("README.md", b"no front matter", "has no library_name, pipeline_tag, tags"),
        ("README.md", b"---\ntags: [a\n---\nx", "README.md: "),
        ("README.md", b"---\nmodel-index: 3\n---\nx", "README.md: "),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", b"cut", "model.safetensors"),
        ("tokenizer.json", None, "it has no tokenizer.json"),
        ("config.json", None, "it has no config.json"),
        ("generation_config.json", None, "it has no generation_config.json"),
    ],
)
def test_nothing_incomplete_is_uploaded(
    server, exported, tmp_path, monkeypatch, name, content, said
):
    out = tmp_path / "out"
    shutil.copytree(exported[1], out)
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    told = refusal(export.main.__wrapped__, [f"--out={out}", "--push=me/new"])
    assert said in told and "nothing was uploaded" in told and not server.models


def test_arguments_of_push(exported, tmp_path):
    run, out = exported
    for arguments, said in (
        ([f"--out={out}"], "--checkpoint is missing"),
        ([f"--out={out}", "--push=one/two/three"], "can be no model's name"),
        ([f"--out={out}", "--push=me/a@main"], "can be no model's name"),
        ([f"--out={out}", f"--checkpoint={run}", "--private"], "goes with --push"),
        ([f"--out={out}", f"--checkpoint={run}", "--license=MIT License"], "no identifier"),
        ([f"--out={out}", "--push=me/a", "--license=mit"], "goes with --checkpoint"),
    ):
        assert said in refusal(export.main.__wrapped__, arguments)


# -------------------------------------------------------------------------------------- card


def test_the_card_of_an_export(exported):
    """As huggingface_hub reads it."""
    card = ModelCard((exported[1] / "README.md").read_text())
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-to-text")
    assert data.datasets == ["data"] and {"image-captioning", "mle"} <= set(data.tags)
    assert data.license is None and data.base_model is None  # none is of the hub
    found = {result.metric_type: result for result in data.eval_results}
    assert {name: r.metric_value for name, r in found.items()} == {"cider": 1.25, "bleu_4": 0.5}
    assert found["cider"].metric_args == {"confidence_level": 0.95, "interval": [1.0, 1.5]}
    assert found["cider"].dataset_args["signature"] == SCORES["signature"]
    assert "| BLEU-4 | 0.500 | 0.400 to 0.625 |" in card.text
    assert "Evaluations of another step are left out: `older`" in card.text
    assert f'har_jax.load_captioner("{exported[1]}")' in card.text
    assert "\n# of two lines" not in card.text and "`a \\| warning # of two lines`" in card.text
    assert str(exported[0]) not in card.text  # where a run lies is nobody's business


def test_a_card_names_the_models_of_the_hub(server, workspace, tmp_path):
    commits = {
        name: server.publish(f"org/{name}", workspace / "models" / name)
        for name in ("clip-l", "mistral")
    }
    run = tmp_path / "run"
    begin(workspace, run, encoder="org/clip-l", lm="org/mistral", lora__rank=2, train_lm=False)
    source = CardSource("peft", 3, "me/adapters", license="apache-2.0")
    card = ModelCard(model_card(run, source))
    assert card.data.base_model == ["org/clip-l", "org/mistral"]
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "peft")
    bases = card.data.to_dict()["har_jax"]["base"]
    assert {base["name"]: base["revision"] for base in bases.values()} == {
        f"org/{name}": commit for name, commit in commits.items()
    }
    assert f'from_pretrained("org/mistral", revision="{commits["mistral"]}")' in card.text
    assert "This step was not evaluated" in card.text and "rank 2" in card.text


def test_adapters_say_the_revision_of_their_base(server, workspace, on_one_device, tmp_path):
    """Where PEFT looks for it, and we too."""
    from peft import PeftConfig

    commit = server.publish("org/mistral", workspace / "models/mistral")
    run, out = tmp_path / "run", tmp_path / "out"
    plan = begin(workspace, run, lm="org/mistral", lora__rank=2, train_lm=False)[1]
    save(run, plan.parts)
    assert export.main([f"--checkpoint={run}", f"--out={out}", "--format=peft"]) == 0
    theirs = PeftConfig.from_pretrained(str(out))
    assert (theirs.base_model_name_or_path, theirs.revision) == ("org/mistral", commit)
    assert peft.adapter_settings(out)["revision"] == commit
    server.publish("org/mistral", {"config.json": b"{}"})
    server.publish("me/adapters", out)
    source = read_source("me/adapters", {}, "best")
    assert source.config.model.lm == f"org/mistral@{commit}"
    assert source.name.startswith("me/adapters@") and source.kind == "peft"
