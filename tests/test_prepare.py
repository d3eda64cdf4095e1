"""The command line of `prepare`: what it writes, what it says, and how it refuses."""

import csv
import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from har_jax.data.dataset import open_split, read_card
from har_jax.data.features.cache import FeatureCache
from har_jax.data.images import Preprocessor
from har_jax.interchange.families.clip import load_vision
from har_jax.models.captioner import vision_features
from har_jax.prepare import main

SMALL = ["--train=6", "--val=2", "--test=3"]


def test_scenes(tmp_path, capsys):
    assert main(["scenes", f"--out={tmp_path}/a", "--seed=5", *SMALL]) == 0
    assert main(["scenes", f"--out={tmp_path}/b", "--seed=5", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "train: 6 images, 30 captions" in said and "test: 3 images, 15 captions" in said
    assert "vocabulary of" in said
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        a, b = (open_split(tmp_path / name, split) for name in "ab")
        assert len(a) == count and list(a) == list(b)
    assert read_card(tmp_path / "a")["settings"]["seed"] == 5
    same = {path.name for path in (tmp_path / "a").iterdir()}
    assert same == {path.name for path in (tmp_path / "b").iterdir()}


def test_coco(real_data, tmp_path, capsys):
    mini = real_data / "coco_mini"
    arguments = [
        "coco",
        f"--images={mini / 'train2017'}",
        f"--captions={mini / 'annotations' / 'captions_train2017.json'}",
        f"--out={tmp_path / 'mini'}",
    ]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "train: 80 images, 400 captions" in said and "nothing was dropped" in said
    assert len(open_split(tmp_path / "mini", "train")) == 80
    assert main(arguments) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--split=val"]) == 0
    assert list(read_card(tmp_path / "mini")["splits"]) == ["val"]


@pytest.fixture(scope="module")
def mini(real_data, tmp_path_factory):
    """159 photographs in one folder, with the same captions in each format that we read."""
    source, here = real_data / "coco_mini", tmp_path_factory.mktemp("mini")
    (here / "photos").mkdir()
    images, rows, karpathy, tokens = [], [], [], []
    for split in ("train", "val"):
        coco = json.loads((source / "annotations" / f"captions_{split}2017.json").read_text())
        captions = {}
        for a in coco["annotations"]:
            captions.setdefault(a["image_id"], []).append((a["id"], a["caption"]))
        for image in coco["images"]:
            name, texts = image["file_name"], captions[image["id"]]
            os.symlink(source / f"{split}2017" / name, here / "photos" / name)
            images.append((split, image["id"], name, [text for _, text in texts]))
            rows += [(name, text, split) for _, text in texts]
            sentences = [{"raw": text, "sentid": number} for number, text in texts]
            karpathy.append(
                {"cocoid": image["id"], "filename": name, "split": split, "sentences": sentences}
            )
            tokens += [f"{name}#{k}\t{' '.join(t.split())}" for k, (_, t) in enumerate(texts)]
    with (here / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    lines = [
        {"file_name": name, "captions": texts, "split": split, "image_id": image_id}
        for split, image_id, name, texts in images
    ]
    (here / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (here / "dataset_coco.json").write_text(json.dumps({"images": karpathy}))
    (here / "flickr.token").write_text("\n".join(tokens) + "\n")
    return here, images


@pytest.mark.parametrize(
    ("reader", "file"),
    [
        ("coco", "dataset_coco.json"),
        ("folder", "captions.csv"),
        ("folder", "captions.jsonl"),
        ("flickr", "flickr.token"),
    ],
)
def test_real_photographs_through_every_reader(mini, tmp_path, capsys, reader, file):
    here, images = mini
    arguments = [reader, f"--images={here / 'photos'}", f"--captions={here / file}", "--strict"]
    assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert "nothing was dropped" in capsys.readouterr().out
    card = read_card(tmp_path / "d")
    one_split = file == "flickr.token"  # it names none
    assert list(card["splits"]) == (["train"] if one_split else ["train", "val"])
    for split in card["splits"]:
        found = open_split(tmp_path / "d", split)
        expected = [row for row in images if one_split or row[0] == split]
        assert found.filenames == [name for _, _, name, _ in expected]
        if file in ("dataset_coco.json", "captions.jsonl"):
            assert found.ids == [image_id for _, image_id, _, _ in expected]
        clean = [[" ".join(text.split()) for text in texts] for _, _, _, texts in expected]
        assert [[" ".join(text.split()) for text in texts] for texts in found.captions] == clean
        assert found[5].image == (here / "photos" / expected[5][2]).read_bytes()


def test_a_folder_of_ones_own_with_drawn_splits(mini, tmp_path, capsys):
    here, images = mini
    rows = [(name, text) for _, _, name, texts in images for text in texts]
    rows.append(("gone.jpg", "of nothing"))
    path = tmp_path / "captions.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows[5:]])
    arguments = ["folder", f"--images={here / 'photos'}", f"--captions={path}", "--val=0.1"]
    assert main([*arguments, f"--out={tmp_path / 'd'}", "--test=0.1"]) == 0
    said = capsys.readouterr().out
    assert f"dropped 1 images without captions: {images[0][2]}" in said
    assert "dropped 1 image files that are missing: gone.jpg" in said
    sizes = {split: v["images"] for split, v in read_card(tmp_path / "d")["splits"].items()}
    assert sum(sizes.values()) == 158 and set(sizes) == {"train", "val", "test"}
    assert read_card(tmp_path / "d")["ids"] == ""
    assert main([*arguments, f"--out={tmp_path / 'e'}", "--strict"]) == 2
    assert "strict drops nothing" in capsys.readouterr().err


def test_a_file_that_may_be_cut_is_told_and_strict_stops(mini, tmp_path, capsys):
    here, _ = mini
    path = tmp_path / "captions.csv"
    (tmp_path / "one").mkdir()
    name = next((here / "photos").iterdir()).name
    path.write_text(f"image,caption\n{name},A room wi")
    os.symlink(here / "photos" / name, tmp_path / "one" / name)
    arguments = ["folder", f"--images={tmp_path / 'one'}", f"--captions={path}"]
    assert main([*arguments, "--strict", f"--out={tmp_path / 'd'}"]) == 2
    assert "does not end in a line break: is it whole?" in capsys.readouterr().err
    assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert "note: " in capsys.readouterr().err


def test_all_captions_of_val2017(real_data, tmp_path, capsys):
    """25,014 real captions to tokens and document frequencies; no reference is lost."""
    from sentencepiece import SentencePieceProcessor

    from har_jax.data.dataset import document_frequency_path
    from har_jax.metrics.cider_d import DocumentFrequency
    from har_jax.text import ptb

    captions = real_data / "coco_val2017_captions.json"
    coco = json.loads(captions.read_text())
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    for image in coco["images"]:  # stand-ins: the photographs are not here
        os.link(tmp_path / "one.png", tmp_path / "photos" / image["file_name"])
    tokenizer = real_data / "tokenizers" / "mistral_v1"
    arguments = ["coco", f"--images={tmp_path / 'photos'}", f"--captions={captions}", "--strict"]
    arguments += ["--split=val", f"--tokenizer={tokenizer}", f"--out={tmp_path / 'd'}"]
    assert main(arguments) == 0
    figures = read_card(tmp_path / "d")["splits"]["val"]
    assert (figures["images"], figures["captions"]) == (5000, 25014)
    spread = {int(n): count for n, count in figures["references_per_image"].items()}
    assert spread[5] == 4987 and spread[6] + spread[7] == 13
    assert "nothing was dropped" in capsys.readouterr().out
    references = {image["id"]: [] for image in coco["images"]}
    for a in coco["annotations"]:
        references[a["image_id"]].append(a["caption"])
    assert open_split(tmp_path / "d", "val").references() == references
    theirs = SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    texts = [a["caption"].strip() for a in coco["annotations"]]
    lengths = [len(ids) + 1 for ids in theirs.encode(texts)]
    tokens = figures["tokens_per_caption"]
    assert tokens["max"] == max(lengths)
    assert tokens["mean"] == pytest.approx(sum(lengths) / len(lengths), abs=0.005)
    assert sum(n > tokens["quantile_0.999"] for n in lengths) <= 25
    assert sum(n > tokens["max_tokens"] for n in lengths) == tokens["longer"] <= 25
    stored = DocumentFrequency.load(document_frequency_path(tmp_path / "d", "val"))
    words = [[ptb.words(text) for text in those] for those in references.values()]
    counted = DocumentFrequency.from_references(words, name="val")
    assert stored.n_images == 5000 and stored.fingerprint == counted.fingerprint


def test_foundation_is_called_with_what_was_asked(tmp_path, monkeypatch):
    assert main(["scenes", f"--out={tmp_path}/d", *SMALL]) == 0
    calls = []
    fake = types.ModuleType("har_jax.miniature.models")
    fake.build = lambda **keywords: calls.append(keywords)
    monkeypatch.setitem(sys.modules, "har_jax.miniature.models", fake)
    import har_jax.miniature

    monkeypatch.setattr(har_jax.miniature, "models", fake, raising=False)
    arguments = ["foundation", f"--data={tmp_path}/d", f"--out={tmp_path}/m", "--seed=3"]
    assert main(arguments) == 0
    asked = {"data_dir": f"{tmp_path}/d", "out_dir": f"{tmp_path}/m", "seed": 3}
    plain = {"scenes": None, "steps": None, "encoder": "clip", "decoder": "mistral"}
    plain["workers"] = len(os.sched_getaffinity(0))
    others = ["--encoder=siglip", "--decoder=qwen3"]
    assert main([*arguments, "--scenes=7", "--steps=9", "--workers=3", *others]) == 0
    named = {"scenes": 7, "steps": 9, "encoder": "siglip", "decoder": "qwen3", "workers": 3}
    assert calls == [{**asked, **plain}, {**asked, **named}]
    assert main(["foundation", f"--data={tmp_path}/x", f"--out={tmp_path}/m"]) == 2
    (tmp_path / "m" / "clip-l").mkdir(parents=True)
    (tmp_path / "m" / "clip-l" / "foundation.json").write_text("{}")
    assert main(arguments) == 0, "what a kill left is continued"
    (tmp_path / "m" / "config.json").write_text("{}")
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes", "--train=0"], "0 scenes"),
        (["coco", "--images=.", "--captions=nowhere.json"], "there is no file 'nowhere.json'"),
        (["coco", "--images=nowhere", "--captions=GOOD"], "--images=nowhere: there is no such"),
        (["coco", "--images=.", "--captions=GOOD", "--split=a", "--split=b"], "1 captions files"),
        (["coco", "--images=.", "--captions=CUT"], "not valid JSON"),
        (["coco", "--images=.", "--captions=GOOD"], "no image to write"),
        (["coco", "--images=.", "--captions=GOOD", "--strict"], "strict drops nothing"),
        (["coco", "--images=.", "--captions=GOOD", "--split=Val 2"], "cannot name a dataset"),
        (["coco", "--images=.", "--captions=GOOD", "--tokenizer=nowhere"], "nowhere"),
        (["coco", "--images=.", "--captions=GOOD", "--exclude=nowhere"], "nowhere does not exist"),
        (["nocaps", "--images=.", "--captions=GOOD"], "is not nocaps' captions file"),
        (["flickr", "--images=.", "--captions=CUT"], "not valid JSON"),
        (["flickr", "--images=.", "--captions=GOOD", "--val=0.1"], "names the split of each"),
        (["folder", "--images=."], "no metadata.csv or metadata.jsonl"),
        (["folder", "--images=nowhere"], "--images=nowhere: there is no such"),
        (["folder", "--images=.", "--images=.", "--captions=GOOD"], "takes one --images, got 2"),
        (["folder", "--images=.", "--captions=GOOD", "--val=1.5"], "at most 1"),
        (["folder", "--images=.", "--captions=GOOD", "--val=.5", "--test=.6"], "together below 1"),
        (["foundation", "--data=nowhere"], "nowhere does not exist"),
        (["vew"], "invalid choice: 'vew' (did you mean 'view'?); choose from 'scenes', 'coco'"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HAR_PROGRESS", "0")
    monkeypatch.chdir(tmp_path)
    good = json.dumps(
        {
            "images": [{"id": 1, "file_name": "gone.jpg"}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
        }
    )
    (tmp_path / "good.json").write_text(good)
    (tmp_path / "cut.json").write_text(good[:-9])
    names = {"GOOD": "good.json", "CUT": "cut.json"}
    for word, name in names.items():
        arguments = [argument.replace(word, name) for argument in arguments]
    assert main([*arguments, "--out=out"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("error: ")
    assert said.err.count("\n") == 1 and said.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "good.json"]


def test_help_reads_well_and_starts_quickly():
    code = (
        "import sys, har_jax.prepare as p\n"
        "try: p.main(['--help'])\n"
        "except SystemExit as e: print(e.code, sorted({'jax', 'tensorflow_datasets', 'grain'}"
        " & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "examples:" in result.stdout and "prepare coco" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_what_a_run_of_that_dtype_computes(tmp_path, dtype):
    from tests.workspace import write_clip

    assert main(["scenes", f"--out={tmp_path / 'data'}", *SMALL]) == 0
    write_clip(tmp_path / "clip", ["a red ball", "two balls"], 0)
    given = [f"--data={tmp_path / 'data'}", f"--clip={tmp_path / 'clip'}", "--split=val"]
    out = tmp_path / "cache"
    assert main(["features", *given, f"--out={out}", f"--compute-dtype={dtype}"]) == 0
    cache, split = FeatureCache(out), open_split(tmp_path / "data", "val")
    assert cache.origin.compute_dtype == dtype
    preprocessor, tower = Preprocessor.from_hf(tmp_path / "clip"), load_vision(tmp_path / "clip")
    images = np.stack([preprocessor(example.image) for example in split])
    direct = jax.jit(lambda x: vision_features(tower, x.astype(dtype), "patch", -2))(images)
    assert direct.dtype == dtype
    ours = cache.of(split).take(np.arange(2))
    np.testing.assert_allclose(ours, direct.astype("float32"), rtol=1e-5, atol=1e-6)
