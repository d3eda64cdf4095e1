"""The command `zerocap`: bad input in one line, a split captioned, scored and continued."""

import json
import shutil

import numpy as np
import pytest

from har_jax.command_line import run
from har_jax.data import builder
from har_jax.data.dataset import Example
from har_jax.data.protocols import Written
from har_jax.errors import UserError
from har_jax.zerocap.captioner import ZeroCap
from har_jax.zerocap.settings import PRESETS, Guidance
from tests.zerocap.worlds import draw_images, make_world, png_bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), seed=3)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "a.png"
    path.write_bytes(png_bytes(draw_images(1)[0]))
    return str(path)


def refused(capsys, *args):
    """The line of a command that ends with 2."""
    code = run("zerocap", [str(a) for a in args])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(lines) == 1, lines
    return lines[0]


def test_bad_input_is_told_in_a_line(world, photo, capsys, tmp_path):
    models = (f"--clip={world.clip}", f"--lm={world.gpt2}")
    assert "got none of them" in refused(capsys, *models)
    assert "got images and data" in refused(capsys, *models, photo, "--data=d", "--out=o")
    assert "--data and --out go together" in refused(capsys, *models, photo, "--out=o")
    assert "cannot be read" in refused(capsys, *models, tmp_path / "none.jpg")
    swapped = (f"--clip={world.gpt2}", f"--lm={world.clip}")
    assert "'clip' where 'gpt2' is needed" in refused(capsys, photo, *swapped)
    both = (f"--clip={world.gpt2}", f"--lm={world.gpt2}")
    assert "'gpt2' where 'clip_vision_model'" in refused(capsys, photo, *both)
    for flag, text in {
        "--beams=0": "zerocap.beams is 0; it must be at least 1",
        "--beams=x": "--beams=x: it must be a whole number",
        "--fusion=1.5": "zerocap.fusion is 1.5",
        "--step-size=nan": "zerocap.step_size is nan",
        "--joint=yes": "--joint=yes: it must be true or false",
        "--norm-over=layers": "zerocap.norm_over is 'layers' (did you mean 'layer'?)",
        "--candidates=9999": "the language model has",
        "--max-tokens=9999": "the language model has positions for",
        "--prompt= ": "zerocap.prompt is empty",
        "--end-token=": "which has no token",
        "--forbidden=nowhere.npy": "give a .npy, JSON or text file",
        "--batch-size=0": "--batch-size: it is 0",
        "--seed=-1": "--seed: it is -1",
    }.items():
        assert text in refused(capsys, photo, *models, flag), flag


def test_a_tokenizer_of_another_model_is_refused(world, photo, capsys, tmp_path):
    lm = tmp_path / "lm"
    shutil.copytree(world.gpt2, lm)
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    line = refused(capsys, photo, f"--clip={world.clip}", f"--lm={lm}")
    assert "tokenizer has" in line and "only 300" in line


@pytest.mark.parametrize("ids", ["[1, 2]", "1\n2\n", "npy"])
def test_forbidden_tokens_of_a_file(world, tmp_path, ids):
    path = tmp_path / ("ids.npy" if ids == "npy" else "ids.txt")
    if ids == "npy":
        np.save(path, np.array([1, 2]))
    else:
        path.write_text(ids)
    zerocap = ZeroCap(world.clip, world.gpt2, Guidance.preset("repo", {"forbidden": str(path)}))
    assert np.flatnonzero(zerocap._forbidden_v).tolist() == [1, 2]


@pytest.mark.parametrize("content", ["[1.5]", "[99999]", "[-1]", "a b", '{"a": 1}', "[[1]]"])
def test_files_that_are_no_list_of_tokens(world, tmp_path, content, photo, capsys):
    path = tmp_path / "ids.json"
    path.write_text(content)
    models = (f"--clip={world.clip}", f"--lm={world.gpt2}")
    assert str(path) in refused(capsys, photo, *models, f"--forbidden={path}")


def test_the_rule_for_forbidden_tokens(world):
    zerocap = ZeroCap(world.clip, world.gpt2)
    texts = [zerocap.vocabulary.texts[i] for i in np.flatnonzero(zerocap._forbidden_v)]
    assert {"(", ")", ",", "!", ":", "\n", "0", "9"} <= set(texts)
    assert "." not in texts and not any(text.startswith(" ") for text in texts)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    how = Guidance.preset(name)
    assert (how.method == "sampled") == (name == "approx")
    assert Guidance.preset(name, {"beams": 2}).beams == 2


def test_a_split_is_captioned_scored_and_continued(world, capsys, tmp_path, monkeypatch):
    """The networks are left out here: what is kept and scored is the same for any captions."""
    written = []

    def write(self, features, keys):
        written.append(len(keys))
        return [Written(f"a picture {i}", True) for i in range(len(keys))]

    monkeypatch.setattr(ZeroCap, "write", write)
    monkeypatch.setattr(ZeroCap, "features", lambda self, images: np.ones((len(images), 24)))
    pictures = draw_images(5)
    examples = (
        ("test", Example(i, f"{i}.png", png_bytes(p), [f"a thing {i}", "two things"]))
        for i, p in enumerate(pictures)
    )
    builder.write(
        tmp_path / "data",
        examples,
        name="things",
        splits=["test"],
        description="Things.",
        settings={},
    )
    out = tmp_path / "out"
    command = [f"--clip={world.clip}", f"--lm={world.gpt2}", f"--data={tmp_path / 'data'}"]
    command += ["--batch-size=2", f"--out={out}"]
    assert run("zerocap", [*command, "--limit=3"]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["n_images"] == 3 and scores["captions_per_second"] > 0
    assert scores["source"]["preset"] == "repo" and scores["source"]["beams"] == 5
    assert sum(written) == 4, "two batches of 2, the last one padded"
    # From here on without the metrics that start Java and take long.
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run("zerocap", command) == 0 and sum(written) == 6, "the others alone are written"
    assert json.loads((out / "scores.json").read_text())["n_images"] == 5
    before = (out / "scores.json").read_bytes()
    capsys.readouterr()
    assert "other settings (beams 5 there, 3 here)" in refused(capsys, *command, "--beams=3")
    assert (out / "scores.json").read_bytes() == before
    assert run("zerocap", [*command, "--seed=4"]) == 0, "beam search draws nothing: no other seed"


def test_an_archive_is_no_array_of_tokens(tmp_path):
    from har_jax.zerocap.vocabulary import _read_ids

    np.savez(tmp_path / "ids.npz", ids=np.array([1, 2]))
    (tmp_path / "ids.npz").rename(tmp_path / "ids.npy")
    with pytest.raises(UserError, match=r"it is an archive \(.npz\), not an array"):
        _read_ids(tmp_path / "ids.npy")
    (tmp_path / "ids.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"zerocap\.forbidden="):
        _read_ids(tmp_path / "ids.npy")
    (tmp_path / "ids.json").write_text('[1, "x"]')
    with pytest.raises(UserError, match="needs float, got str"):
        _read_ids(tmp_path / "ids.json")
