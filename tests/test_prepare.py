"""The command line of `prepare`: what it writes, what it says, and how it refuses."""

import json
import subprocess
import sys
import types

import pytest

from har_jax.data.dataset import open_split, read_card
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


def test_foundation_is_called_with_what_was_asked(tmp_path, monkeypatch):
    assert main(["scenes", f"--out={tmp_path}/d", *SMALL]) == 0
    calls = []
    fake = types.ModuleType("har_jax.stages.foundation")
    fake.build = lambda **keywords: calls.append(keywords)
    monkeypatch.setitem(sys.modules, "har_jax.stages.foundation", fake)
    import har_jax.stages

    monkeypatch.setattr(har_jax.stages, "foundation", fake, raising=False)
    arguments = ["foundation", f"--data={tmp_path}/d", f"--out={tmp_path}/m", "--seed=3"]
    assert main(arguments) == 0
    assert calls == [{"data_dir": f"{tmp_path}/d", "out_dir": f"{tmp_path}/m", "seed": 3}]
    assert main(["foundation", f"--data={tmp_path}/x", f"--out={tmp_path}/m"]) == 2
    (tmp_path / "m").mkdir()
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
        (["foundation", "--data=nowhere"], "nowhere does not exist"),
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
