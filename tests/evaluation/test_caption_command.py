"""`python -m har_jax.caption`: bad images are named before anything is loaded."""

import io
import json

import pytest
from PIL import Image

from har_jax import caption


@pytest.fixture
def files(tmp_path):
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    (tmp_path / "good.jpg").write_bytes(buffer.getvalue())
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:400])
    (tmp_path / "text.jpg").write_text("no image at all")
    (tmp_path / "empty.png").touch()
    return tmp_path


class Fake:
    def generate(self, images, **settings):
        return [f"caption of {len(image)} bytes, {settings['method']}" for image in images]


@pytest.fixture
def loaded(monkeypatch):
    """Stands for the model; records whether it was loaded."""
    import har_jax.loading.captioner

    calls = []
    monkeypatch.setattr(
        har_jax.loading.captioner, "load_captioner", lambda *a, **k: calls.append((a, k)) or Fake()
    )
    return calls


@pytest.mark.parametrize("name", ["absent.jpg", "cut.jpg", "text.jpg", "empty.png", "."])
def test_a_bad_image_is_named_before_the_model_is_loaded(files, loaded, capsys, name):
    bad = str(files / name)
    assert caption.main(["--checkpoint=run", str(files / "good.jpg"), bad]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert bad.rstrip(".") in printed.err and not printed.out and not loaded


def test_one_line_per_image(files, loaded, capsys):
    good = str(files / "good.jpg")
    assert caption.main(["--checkpoint=run", "--method=beam", good, good]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split("\t")[0] == good and lines[0].endswith("beam")


def test_json(files, loaded, capsys):
    good = str(files / "good.jpg")
    assert caption.main(["--checkpoint=run", good, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == ["image", "caption"] and row["image"] == good


def test_a_file_of_no_caption_is_a_failure(files, loaded, capsys, monkeypatch):
    """A script that captions a folder of broken files has to hear of it."""
    from har_jax.evaluation import captions_file

    made = captions_file.Made(captions=0, skipped=2)
    monkeypatch.setattr(captions_file, "caption_into", lambda *_, **__: made)
    out = files / "out.jsonl"
    assert caption.main(["--checkpoint=run", str(files / "text.jpg"), f"--out={out}"]) == 2
    told = f"2 images were skipped: {files / 'out.skipped.jsonl'} says why"
    assert told in capsys.readouterr().err


def test_no_such_run(files, capsys):
    assert caption.main([f"--checkpoint={files / 'absent'}", str(files / "good.jpg")]) == 2
    assert "absent" in capsys.readouterr().err
