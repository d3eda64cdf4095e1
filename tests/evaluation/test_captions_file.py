"""`caption --out`: every image once whatever kills it, in three formats, in two processes too."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from har_jax import caption
from har_jax.data.image_list import ImageList, paths_of
from har_jax.data.images import Preprocessor
from har_jax.decoding.settings import DecodeSettings
from har_jax.errors import UserError
from har_jax.evaluation.captions_file import caption_into, skipped_path
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.sharding import MESH_AXES, divisible
from tests.conftest import ROOT, xla_flags
from tests.training.test_two_processes import free_port

SIDE = 8
MESH = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(1, 2, 1), MESH_AXES)


class Killed(Exception):
    pass


class Fake(LoadedCaptioner):
    """A captioner whose captions are what it sees, so that each can be told from its image alone;
    it dies at its k-th batch."""

    def __init__(self, dies_at=-1, run=None):
        self.dies_at, self.batches, self.run, self.step, self.mesh = dies_at, 0, run or {}, 7, MESH
        sizes, alike = ((SIDE, SIDE),) * 2, ((0.0,) * 3, (1.0,) * 3)
        self.preprocessor = Preprocessor(SIDE, *sizes, True, True, 1.0, *alike)
        data, model = types.SimpleNamespace(max_tokens=5), types.SimpleNamespace(prompt="")
        self.config: Any = types.SimpleNamespace(data=data, model=model)

    def batch_size_for(self, count, wanted=None):
        return divisible(min(wanted or 2, count), self.mesh)

    def run_batch(self, pixels, how, seed):
        if self.batches == self.dies_at:
            raise Killed
        self.batches += 1
        drawn = np.random.RandomState(seed).randint(1000, size=len(pixels))
        drawn = drawn if how.method == "sample" else 0 * drawn
        return np.stack([pixels[:, 0, 0, 0], pixels[:, 0, 0, 1], drawn], 1), None

    def decode_texts(self, tokens, lengths):
        return ["red {:.0f}, green {:.0f}, {:.0f}".format(*row) for row in tokens]


def write(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (number % 256, number // 256, 0)).save(path)


def text_of(number, drawn=0):
    return f"red {number % 256}, green {number // 256}, {drawn}"


@pytest.fixture
def photos(tmp_path):
    """23 images in two folders, one of them no image, another cut off."""
    folder = tmp_path / "photos"
    for number in range(23):
        write(folder / ("a" if number % 3 else "b") / f"{number:03}.png", number)
    (folder / "a" / "004.png").write_bytes(b"no image")
    cut = folder / "b" / "009.png"
    cut.write_bytes(cut.read_bytes()[:50])
    (folder / "a" / "notes.txt").write_text("no image is expected of it")
    return folder


def into(out, photos, fake=None, method="greedy", **settings):
    images = ImageList.of([str(photos)])
    how = DecodeSettings(method)
    captioner: Any = fake or Fake()
    return caption_into(captioner, images, out, how, source={"checkpoint": "x"}, **settings)


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def check_whole(out):
    rows = rows_of(out)
    numbers = [int(row["image"][2:5]) for row in rows]
    assert sorted(numbers) == [n for n in range(23) if n not in (4, 9)]
    assert [row["image_id"] for row in rows] == numbers
    assert [row["caption"] for row in rows] == list(map(text_of, numbers))
    skipped = rows_of(skipped_path(out))
    assert [row["image"] for row in skipped] == ["a/004.png", "b/009.png"]
    assert "is not an image" in skipped[0]["why"] and "does not decode" in skipped[1]["why"]
    assert sorted(p.name for p in out.parent.iterdir() if p != out.parent / "photos") == [
        out.name,
        skipped_path(out).name,
    ]


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_killed_five_times_every_image_is_captioned_once(tmp_path, photos, cut):
    out = tmp_path / "captions.jsonl"
    lines = tmp_path / ".captions.jsonl.partial/shards/lines.jsonl"
    done = 0
    for _ in range(5):
        with pytest.raises(Killed):
            into(out, photos, Fake(dies_at=2))
        lines.write_bytes(lines.read_bytes()[: -cut or None])  # the last line as a kill leaves it
        assert not out.exists() and lines.read_bytes().count(b"\n") > done
        done = lines.read_bytes().count(b"\n")
    made = into(out, photos)
    assert (made.captions, made.skipped) == (21, 2)
    check_whole(out)
    with pytest.raises(UserError, match="exists; choose another --out or pass --overwrite"):
        into(out, photos, Fake(dies_at=0))


def test_what_is_drawn_does_not_depend_on_kills(tmp_path, photos):
    into(tmp_path / "whole.jsonl", photos, method="sample", seed=3)
    out = tmp_path / "captions.jsonl"
    with pytest.raises(Killed):
        into(out, photos, Fake(dies_at=2), method="sample", seed=3)
    lines = tmp_path / ".captions.jsonl.partial/shards/lines.jsonl"
    lines.write_bytes(lines.read_bytes()[:-1])  # a stretch of which some is done
    into(out, photos, method="sample", seed=3)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    into(tmp_path / "other.jsonl", photos, method="sample", seed=4)
    assert out.read_bytes() != (tmp_path / "other.jsonl").read_bytes()


def test_other_settings_or_images_are_not_continued(tmp_path, photos):
    out = tmp_path / "captions.jsonl"
    with pytest.raises(Killed):
        into(out, photos, Fake(dies_at=2))
    with pytest.raises(UserError, match="unfinished captions file with another method"):
        into(out, photos, method="beam")
    first = next(photos.glob("a/001.png"))
    first.rename(photos / "a" / "000.png")
    with pytest.raises(UserError, match=r"begun with other images \('a/001.png' is not among"):
        into(out, photos)
    (photos / "a" / "000.png").rename(first)
    write(photos / "a" / "new.png", 300)  # further ones are welcome
    into(out, photos)
    found = {row["image"]: row["caption"] for row in rows_of(out)}
    assert len(found) == 22 and found["a/new.png"] == text_of(300)
    into(out, photos, method="beam", overwrite=True)
    assert len(rows_of(out)) == 22


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_formats_say_the_same(tmp_path, photos, suffix):
    out = tmp_path / f"captions{suffix}"
    into(out, photos)
    into(tmp_path / "captions.jsonl", photos, overwrite=True)
    text = out.read_text()
    rows = json.loads(text) if suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    assert [{**row, "image_id": int(row["image_id"])} for row in rows] == rows_of(
        tmp_path / "captions.jsonl"
    )


def test_names_and_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x/COCO_val2014_000000000042.jpg", "x/7.png", "y/7.png", "y/dog.JPG", "8.png"):
        write(tmp_path / name, 1)
    listed = ImageList.of(["x"])
    assert listed.names == ["7.png", "COCO_val2014_000000000042.jpg"] and listed.ids == [7, 42]
    listed = ImageList.of(["y", "x/*.png", "8.png", "8.png"])
    assert listed.names == ["y/7.png", "y/dog.JPG", "x/7.png", "8.png"]
    assert listed.ids == ["y/7.png", "y/dog.JPG", "x/7.png", 8], "7 would be two images"
    assert paths_of(["8.png", "8.png", "**/*.jpg"])[:2] == ["8.png", "8.png"]
    (tmp_path / "empty").mkdir()
    for given, told in (("empty", "holds no image files"), ("*.webp", "no image file matches")):
        with pytest.raises(UserError, match=told):
            ImageList.of([given])


def test_names_that_are_one_id(tmp_path):
    """One with its accent as a letter of its own: `evaluate` could not tell them apart."""
    for name in (
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}.png",
        "cafe\N{COMBINING ACUTE ACCENT}.png",
    ):
        write(tmp_path / name, 1)
    with pytest.raises(UserError, match=r"two files are called .* rename one"):
        ImageList.of([str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out=captions.txt"], "ends in .jsonl, .json, .csv"),
        (["--out=captions.csv", "--json"], "--out=FILE.json"),
        (["--batch-size=3"], "goes with --out"),
        (["--out=photos"], "ends in"),
    ],
)
def test_refused_before_anything_is_loaded(photos, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(photos.parent)
    assert caption.main(["--checkpoint=absent", "photos", *flags]) == 2
    assert told in capsys.readouterr().err


# ------------------------------------------------------------------ with real processes


def start(argv, cwd, processes=1):
    """The command in so many processes of two devices each."""
    common = {**os.environ, "XLA_FLAGS": xla_flags(2), "NPROC": "32", "HAR_PROGRESS": "0"}
    common |= {"PYTHONPATH": str(ROOT)}
    if processes > 1:
        common |= {"HAR_DISTRIBUTED": "1", "JAX_NUM_PROCESSES": str(processes)}
        common |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
    command = [sys.executable, "-m", "tests.child", "har_jax.caption", *argv]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(command, cwd=cwd, env={**common, "JAX_PROCESS_ID": str(i)}, **piped)
        for i in range(processes)
    ]


def end(running):
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [p.returncode for p in running] == [0] * len(running), "\n----\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def exported(workspace, tmp_path_factory):
    """A LLaVA directory, and a function that draws so many images into a folder."""
    from har_jax import export, train
    from tests.training.commands import train_arguments

    root = tmp_path_factory.mktemp("exported")
    os.chdir(ROOT)
    assert train.main(train_arguments(workspace, root / "mle", steps=1, data__val_split="")) == 0
    assert export.main([f"--checkpoint={root / 'mle'}", f"--out={root / 'llava'}"]) == 0

    def draw(folder, count):
        folder.mkdir()
        noise = np.random.RandomState(0).randint(256, size=(count, 4, 4, 3)).astype(np.uint8)
        for number, pixels in enumerate(noise):
            Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number:06}.png")
        return folder

    return root / "llava", draw


@pytest.mark.kill
@pytest.mark.parametrize("processes", [1, 2])
def test_5000_images_killed_five_times(exported, tmp_path, processes):
    llava, draw = exported
    count = 5000
    draw(tmp_path / "images", count)
    (tmp_path / "images" / "000017.png").write_bytes(b"no image")
    argv = [f"--checkpoint={llava}", "images", "--batch-size=32", "--max-tokens=6"]
    lines = tmp_path / ".killed.jsonl.partial/shards/lines.jsonl"
    for kill in range(5):
        running = start([*argv, "--out=killed.jsonl"], tmp_path, processes)
        deadline = time.monotonic() + 300
        while not lines.exists() or lines.read_bytes().count(b"\n") < 700 * (kill + 1):
            assert time.monotonic() < deadline and all(p.poll() is None for p in running)
            time.sleep(0.005)
        for process in running:
            process.send_signal(signal.SIGKILL)
        for process in running:
            process.communicate()
        assert not (tmp_path / "killed.jsonl").exists()
        lines.write_bytes(lines.read_bytes()[: -7 * kill or None])
    end(start([*argv, "--out=killed.jsonl"], tmp_path, processes))
    end(start([*argv, "--out=whole.jsonl"], tmp_path))
    rows = rows_of(tmp_path / "killed.jsonl")
    assert [row["image_id"] for row in rows] == [i for i in range(count) if i != 17]
    assert rows == rows_of(tmp_path / "whole.jsonl")
    assert [row["image"] for row in rows_of(tmp_path / "killed.skipped.jsonl")] == ["000017.png"]


MEASURED = """
import resource, sys
from har_jax import caption
assert caption.main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.kill
def test_memory_does_not_grow_with_the_number_of_images(exported, tmp_path):
    llava, draw = exported
    draw(tmp_path / "images", 6000)
    peaks = []
    for name, pattern in (("few", "images/000[0-4]*.png"), ("many", "images/*.png")):
        argv = [f"--checkpoint={llava}", pattern, f"--out={name}.jsonl"]
        argv += ["--batch-size=32", "--max-tokens=6"]
        ran = subprocess.run(
            [sys.executable, "-c", MEASURED, *argv],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(2), "NPROC": "32"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        peaks.append(int(ran.stdout.split("peak")[1]))
    # Twelve times the images: their pixels alone would be 65 MiB more.
    assert peaks[1] - peaks[0] < 20_000, peaks
