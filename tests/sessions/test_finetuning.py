"""A captioner of somebody else's on one's own photographs: what training starts from, and the whole
way from a LLaVA directory, photographs and a CSV to an exported model."""

import csv
import json

import jax
import numpy as np
import pytest
import transformers
from PIL import Image

from har_jax import caption, evaluate, export, prepare, train
from har_jax.config_file import load
from har_jax.errors import UserError
from har_jax.loading.captioner import load_captioner
from har_jax.sessions.assemble import assemble
from har_jax.sessions.plan import plan_session
from tests.conftest import shared_data
from tests.families.test_llava import write_llava

SMALL = {
    "model.dtype": "float32",
    "model.frozen_dtype": "float32",
    "model.lora.rank": 2,
    "model.scan_layers": False,
    "model.remat": "none",
    "data.max_tokens": 12,
    "data.captions_per_image": 2,
    "data.val_split": "",
    "batch_size": 8,
    "steps": 2,
    "log_every": 1,
    "checkpoint_every": 100,
    "eval.batch_size": 4,
    "optim.lr": 1e-3,
    "optim.warmup_steps": 0,
    "scst.doctor": "off",
    "scst.samples": 2,
}


def photographs(folder):
    """{name: captions} of 16 images in `folder`: real ones where they are, else drawn."""
    real = shared_data() / "coco_mini"
    folder.mkdir()
    found = {}
    if real.is_dir():
        told = json.loads((real / "annotations" / "captions_val2017.json").read_text())
        for image in told["images"][:16]:
            name = image["file_name"]
            (folder / name).symlink_to(real / "val2017" / name)
            own = [a["caption"] for a in told["annotations"] if a["image_id"] == image["id"]]
            found[name] = own[:3]
        return found
    for number in range(16):
        color = ["red", "blue", "green", "yellow"][number % 4]
        Image.new("RGB", (30 + number, 40), color).save(folder / f"{number:03}.png")
        found[f"{number:03}.png"] = [f"a {color} wall number {number}", f"it is all {color}"]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`llava` of transformers, `photos`, `captions.csv`, and the dataset `data` that they make."""
    root = tmp_path_factory.mktemp("own")
    write_llava(root / "llava", "llama", "clip", 0)
    rows = photographs(root / "photos")
    with open(root / "captions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for number, (name, captions) in enumerate(rows.items()):
            split = "train" if number < 8 else "val" if number < 12 else "test"
            table.writerows([name, text, split] for text in captions)
    argv = ["folder", f"--images={root / 'photos'}", f"--captions={root / 'captions.csv'}"]
    assert prepare.main([*argv, f"--out={root / 'data'}"]) == 0
    return root


def settings(world, **changes):
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    found = {**SMALL, "data.dir": world / "data", "init_from": world / "llava", **changed}
    return {key: str(value) for key, value in found.items()}


def arguments(world, stage, run, **changes):
    found = settings(world, **changes)
    flags = [f"--config.{key}={value}" for key, value in found.items()]
    return [f"--config=configs/{stage}.py:finetune", f"--workdir={run}", *flags]


@pytest.mark.usefixtures("on_one_device")
def test_from_photographs_and_a_csv_to_an_exported_captioner(world, tmp_path, capsys):
    mle, scst, out = tmp_path / "mle", tmp_path / "scst", tmp_path / "captions.jsonl"
    assert train.main(arguments(world, "mle", mle)) == 0
    assert train.main(arguments(world, "scst", scst, init_from=mle)) == 0
    info = json.loads((scst / "run.json").read_text())
    assert info["parent"]["run"] == str(mle) and info["started_from"] is None
    before = json.loads((mle / "run.json").read_text())
    assert before["started_from"] == {"path": str(world / "llava"), "kind": "llava"}
    assert before["parent"] is None and before["base"] == info["base"]
    assert before["base"]["lm"]["path"] == str(world / "llava")

    flags = [f"--checkpoint={scst}", "--max-tokens=12"]
    assert caption.main([*flags, str(world / "photos"), f"--out={out}", "--batch-size=4"]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(written) == 16

    def scores(name, *argv):
        argv = [*argv, f"--out={tmp_path / name}", "--metrics=CIDEr,Bleu,ROUGE_L"]
        assert evaluate.main(argv) == 0, capsys.readouterr().err
        return json.loads((tmp_path / name / "scores.json").read_text())

    # Of the same captions: from the run, from the file of its captions, and beside the CSV.
    own = scores("own", f"--checkpoint={scst}")
    names = {f.name for f in (world / "photos").iterdir()}
    tests = {r["filename"] for r in json.loads((tmp_path / "own" / "per_image.json").read_text())}
    assert tests < names and own["n_images"] == 4
    some = tmp_path / "some.csv"
    with some.open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "caption"], extrasaction="ignore")
        table.writeheader()
        table.writerows(row for row in written if row["image"] in tests)
    for references in (f"{world / 'data'}:test", world / "captions.csv"):
        found = scores("file", f"--predictions={some}", f"--references={references}")
        assert found["CIDEr"] == own["CIDEr"] and found["Bleu_1"] == own["Bleu_1"]

    assert export.main([f"--checkpoint={scst}", f"--out={tmp_path / 'hf'}"]) == 0
    exported = load_captioner(tmp_path / "hf")
    paths = [world / "photos" / row["image"] for row in written]
    assert exported.generate(paths, batch_size=4, max_tokens=12) == [r["caption"] for r in written]
    transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    argv = [f"--checkpoint={tmp_path / 'hf'}", f"--out={tmp_path / 'other'}"]
    assert evaluate.main(argv) == 2 and "--data=DIR" in capsys.readouterr().err
    again = scores("again", *argv[:1], f"--data={world / 'data'}")
    assert again["CIDEr"] == pytest.approx(own["CIDEr"]) and "not known" in again["warnings"][0]

    # The decoder alone has no row for `<image>`, and its tokenizer no such token.
    argv = [f"--checkpoint={scst}", f"--out={tmp_path / 'lm'}", "--format=decoder"]
    assert export.main(argv) == 0
    decoder = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "lm")
    assert len(tokenizer) <= decoder.config.vocab_size
    assert all("<image>" not in file.read_text() for file in (tmp_path / "lm").glob("*.json"))
    text = written[0]["caption"]
    before = transformers.AutoTokenizer.from_pretrained(world / "llava")
    assert tokenizer(text).input_ids == before(text).input_ids and "<image>" in before.get_vocab()


def begun(world, stage="mle", **changes):
    """A session, and all its parameters before the first step."""
    config = load(f"configs/{stage}.py:finetune", settings(world, **changes))
    session = assemble(plan_session(config, "unused"))
    return session, {**session.frozen, **session.initial_params()}


def scored(structure, params, pixels, mesh):
    """log P of some captions of each image: what a captioner is, as far as it can be seen."""
    tokens = jax.numpy.arange(8 * 2 * 5).reshape(8, 2, 5) % 250 + 3
    pixels = jax.numpy.asarray(pixels)

    def score(params):
        captioner = structure.merge(params)
        cache = captioner.prefill(captioner.project(captioner.encode(pixels)))
        return captioner.score(cache, tokens)

    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(score)(params))


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("mle", {"model__lora__rank": 0}),
        pytest.param("mle", {"model__scan_layers": True}, marks=pytest.mark.long),
        pytest.param(
            "scst", {"model__lora__rank": 0, "model__train_lm": False}, marks=pytest.mark.long
        ),
    ],
)
def test_training_begins_with_the_weights_of_a_llava(world, stage, changes):
    """Whatever is frozen or adapted: the captioner before the first step is the LLaVA."""
    session, params = begun(world, stage, **changes)
    theirs = load_captioner(world / "llava", dtype="float32")
    assert session.plan.config.model.encoder == str(world / "llava")
    blueprint, own = session.blueprint, theirs.blueprint
    keys = ("vision_layer", "vision_tokens", "prompt_ids", "wordless", "eos_ids", "bos_id")
    for key in keys:
        assert getattr(blueprint.config, key) == getattr(own.config, key)
    assert (len(blueprint.trained) > 4) == blueprint.model.train_lm
    pixels = np.random.RandomState(0).randn(8, *session.batches._looks.size, 3).astype(np.float32)
    found = scored(blueprint.structure, params, pixels, theirs.mesh)
    expected = scored(own.structure, theirs.params, pixels, theirs.mesh)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__lm": "models/other"}, "which has its own lm, but config.model.lm is 'models/o"),
        ({"model__projector": "pooled"}, "model.projector='patch', but this configuration says"),
        ({"init_from": "nowhere"}, "no run directory 'nowhere'"),
    ],
)
def test_contradictions_are_one_line(world, changes, told):
    with pytest.raises(UserError, match=told):
        plan_session(load("configs/mle.py:finetune", settings(world, **changes)), "unused")


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Two runs of a step each that began with the LLaVA: with adapters, and the projector alone."""
    root = tmp_path_factory.mktemp("runs")
    here = {"steps": 1, "optim__lr": 0.1}
    assert train.main(arguments(world, "mle", root / "lora", **here)) == 0
    alone = {**here, "model__lora__rank": 0, "model__train_lm": False}
    assert train.main(arguments(world, "mle", root / "projector", **alone)) == 0
    argv = [f"--checkpoint={root / 'lora'}", f"--out={root / 'peft'}", "--format=peft"]
    assert export.main(argv) == 0
    return root


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "name", "changes"),
    [
        ("mle", "lora", {}),
        ("mle", "peft", {}),
        ("scst", "peft", {"model__scan_layers": True}),
        ("mle", "projector", {}),  # fresh adapters, which change nothing yet
        ("mle", "projector", {"model__lora__rank": 0}),
        ("scst", "lora", {}),
    ],
)
def test_training_begins_with_what_load_captioner_loads(world, runs, stage, name, changes):
    session, params = begun(world, stage, init_from=runs / name, **changes)
    theirs = load_captioner(runs / name, dtype="float32")
    pixels = np.random.RandomState(0).randn(8, *session.batches._looks.size, 3).astype(np.float32)
    found = scored(session.blueprint.structure, params, pixels, theirs.mesh)
    expected = scored(theirs.structure, theirs.params, pixels, theirs.mesh)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    llava = load_captioner(world / "llava", dtype="float32")
    base = scored(llava.structure, llava.params, pixels, llava.mesh)
    assert np.abs(base - expected).max() > 1e-2, "the step before has taught something"
