"""`prepare` broken off: by a kill, by a full disk, by another `prepare`; and continued."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from har_jax.data import builder, photographs, staged
from har_jax.data.dataset import open_split, read_card
from har_jax.prepare import main

SHARD = 4
COUNT = {"train": 18, "val": 5, "test": 3}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(builder, "EXAMPLES_PER_SHARD", SHARD)
    monkeypatch.setenv("HAR_PROGRESS", "log")


@pytest.fixture
def arguments(tmp_path):
    """`prepare coco` of 26 small photographs in Karpathy's format, its splits mixed; no --out."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    splits = [split for split, count in COUNT.items() for _ in range(count)]
    rng.shuffle(splits)
    images = []
    for i, split in enumerate(splits):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        (folder / f"{i}.jpg").write_bytes(buffer.getvalue())
        sentences = [{"raw": f"a photo of {i} {word}", "sentid": 10 * i + k}
                     for k, word in enumerate(("apples", "pears"))]  # fmt: skip
        images.append({"cocoid": i, "split": split, "filename": f"{i}.jpg", "sentences": sentences})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return ["coco", f"--images={folder}", f"--captions={tmp_path / 'dataset_coco.json'}"]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def finished(tmp_path):
    return len(list((tmp_path / ".d.partial" / "shards").glob("*.json")))


def start(arguments, prelude="", env=None):
    """`prepare` in a process of its own, with our small shards."""
    code = (
        "import sys, time, har_jax.data.photographs as p, har_jax.data.builder as w\n"
        f"w.EXAMPLES_PER_SHARD = {SHARD}\n{prelude}\n"
        "from har_jax.prepare import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).resolve().parents[2],
    )


SLOW = "decode = p.decode\np.decode = lambda *a, **k: (time.sleep(0.1), decode(*a, **k))"


def test_a_killed_prepare_continues_and_gives_the_same_bytes(arguments, tmp_path, capsys):
    assert main([*arguments, f"--out={tmp_path / 'whole'}"]) == 0
    process = start([*arguments, f"--out={tmp_path / 'd'}"], SLOW)
    try:
        while finished(tmp_path) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        # While it works, a second one is refused, and neither disturbs the other.
        capsys.readouterr()
        assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 2
        said = capsys.readouterr().err
        assert "another process is writing" in said and said.count("\n") == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "d").exists()
    kept = finished(tmp_path)
    assert 3 <= kept < 8
    read = []
    original = photographs.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "decode", lambda *a, **k: (read.append(1), original(*a, **k))[1])
        assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert "is there: continuing" in capsys.readouterr().err
    assert 0 < len(read) <= sum(COUNT.values()) - 3 * 1  # finished shards were not read again
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "d") == whole
    assert len([name for name in whole if "train.array_record" in name]) == 5
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_one_line_and_the_shards_are_kept(arguments, tmp_path):
    assert main([*arguments, f"--out={tmp_path / 'whole'}"]) == 0
    # The limit stands for the disk: one image of the last training shard does not fit.
    path = tmp_path / "photos" / "25.jpg"
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (400, 700, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    before = path.read_bytes()
    path.write_bytes(buffer.getvalue())
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))"
    process = start([*arguments, f"--out={tmp_path / 'd'}"], limit)
    said = process.communicate()[1]
    assert process.returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("error: cannot write") and "File too large" in last
    assert "give the same command again" in last and "Traceback" not in said
    assert not (tmp_path / "d").exists() and finished(tmp_path) >= 1
    path.write_bytes(before)
    assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


@pytest.mark.parametrize("where", ["first shard", "fourth shard", "dataset"])
def test_a_kill_while_files_get_their_final_names(arguments, tmp_path, monkeypatch, where):
    class Killed(BaseException):
        pass

    moved = []

    def killed(source, target):
        moved.append(source)
        if len(moved) == {"first shard": 1, "fourth shard": 4, "dataset": 99}[where]:
            raise Killed
        os.rename(source, target)

    def killed_rename(source, target):
        if pathlib.Path(target) == tmp_path / "d":
            raise Killed
        return rename(source, target)

    rename = os.rename
    assert main([*arguments, f"--out={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "dataset":
            patch.setattr(os, "rename", killed_rename)
        else:
            patch.setattr(staged.os, "replace", lambda s, t: _only_shards(s, t, killed))
        main([*arguments, f"--out={tmp_path / 'd'}"])
    assert not (tmp_path / "d").exists()
    with monkeypatch.context() as patch:
        patch.setattr(photographs, "decode", lambda *a, **k: pytest.fail("read an image again"))
        assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def _only_shards(source, target, move):
    if "array_record" in str(target):
        move(source, target)
    else:
        os.rename(source, target)


def interrupt_after(monkeypatch, count):
    """Ctrl-C at the given image."""
    original, seen = photographs.decode, []

    def decode(*arguments, **options):
        seen.append(1)
        if len(seen) > count:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(photographs, "decode", decode)


def test_a_kill_between_the_renames_of_a_replacement(arguments, tmp_path, monkeypatch, capsys):
    """The former dataset is put back, and the same command replaces it after all."""

    class Killed(BaseException):
        pass

    out = tmp_path / "d"
    assert main(["scenes", f"--out={out}", "--train=2", "--val=1", "--test=1"]) == 0
    former, rename = contents(out), os.rename

    def killed(source, target):
        if pathlib.Path(target) == out:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "rename", killed)
        main([*arguments, f"--out={out}", "--overwrite"])
    assert not out.exists()
    assert main([*arguments, f"--out={out}"]) == 2  # does not ask for it to be replaced
    assert "not empty" in capsys.readouterr().err.splitlines()[-1]
    assert contents(out) == former
    assert main([*arguments, f"--out={out}", "--overwrite"]) == 0
    assert main([*arguments, f"--out={tmp_path / 'whole'}"]) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_scenes_after_a_kill_start_anew(tmp_path, monkeypatch):
    """A stream is not continued: nothing of another seed is left in it."""

    class Killed(BaseException):
        pass

    def killed_at_the_end(self, arrange, **_):
        arrange()
        raise Killed

    sizes = ["--train=2", "--val=1", "--test=1"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(staged.Staged, "finish", killed_at_the_end)
        patch.setattr(staged.Staged, "forget", lambda self: None)  # a kill does not tidy up
        main(["scenes", f"--out={tmp_path / 'd'}", "--seed=1", *sizes])
    assert (tmp_path / ".d.partial" / "whole" / "dataset.json").exists()
    for name in "de":
        assert main(["scenes", f"--out={tmp_path / name}", "--seed=2", *sizes]) == 0
    assert contents(tmp_path / "d") == contents(tmp_path / "e")
    assert not list(tmp_path.glob(".*"))


def test_control_c_says_how_to_go_on(arguments, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 9)
        assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "what is finished is kept in" in last and "the same command continues" in last
    assert finished(tmp_path) >= 1 and not (tmp_path / "d").exists()


def test_other_captions_start_anew(arguments, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 12)
        assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 130
    path = tmp_path / "dataset_coco.json"
    path.write_text(path.read_text().replace("pears", "plums"))
    assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert "was begun with other captions" in capsys.readouterr().err
    texts = [t for those in open_split(tmp_path / "d", "train").captions for t in those]
    assert not any("pears" in text for text in texts)


def test_an_image_that_was_mended_meanwhile_is_read(arguments, tmp_path, capsys):
    for name in ("3.jpg", "7.jpg"):
        (tmp_path / "photos" / name).rename(tmp_path / name)
    (tmp_path / "photos" / "9.jpg").write_bytes(b"cut")
    assert main([*arguments, f"--out={tmp_path / 'd'}", "--strict"]) == 2
    assert "2 image files that are missing" in capsys.readouterr().err
    (tmp_path / "3.jpg").rename(tmp_path / "photos" / "3.jpg")
    assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    dropped = {"image files that are missing": 1, "images that do not decode": 1}
    assert read_card(tmp_path / "d")["dropped"] == dropped
    assert main([*arguments, f"--out={tmp_path / 'e'}"]) == 0
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def test_a_shard_that_was_damaged_is_written_again(arguments, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 20)
        assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 130
    shards = tmp_path / ".d.partial" / "shards"
    first = next(path for path in sorted(shards.iterdir()) if path.suffix == "")
    first.write_bytes(first.read_bytes()[:1000])
    assert main([*arguments, f"--out={tmp_path / 'd'}"]) == 0
    assert main([*arguments, f"--out={tmp_path / 'e'}"]) == 0
    assert contents(tmp_path / "d") == contents(tmp_path / "e")
