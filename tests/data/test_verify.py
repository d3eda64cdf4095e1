"""`prepare verify` reads every byte."""

import json
import shutil

import pytest

from har_jax.data.verify import problems
from har_jax.prepare import main
from tests.data.caches import make
from tests.data.test_dataset import forget_sums


def verify(directory, capsys):
    code = main(["verify", str(directory)])
    told = capsys.readouterr()
    return (told.err if code else told.out).strip().splitlines()[-1]


@pytest.fixture
def own(scenes_dir, tmp_path):
    return shutil.copytree(scenes_dir, tmp_path / "own")


def test_what_is_whole(own, scenes_dir, tmp_path, capsys):
    assert verify(own, capsys).endswith(
        "train: 30 images, val: 7 images, test: 8 images; all are whole"
    )
    make(scenes_dir, tmp_path / "cache")
    assert verify(tmp_path / "cache", capsys).endswith("7 files are as they were written")
    assert "holds no dataset" in verify(tmp_path, capsys)


def test_a_flipped_bit_in_any_file_of_a_dataset(own, capsys):
    for path in sorted(own.iterdir()):
        if path.name == "dataset.json":
            continue
        whole = path.read_bytes()
        at = 500 if "array_record" in path.name else len(whole) // 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        line = verify(own, capsys)
        assert line.startswith("error: ") and path.name in line and len(line) < 1000
        path.write_bytes(whole)
    assert problems(own) == []


def test_an_older_dataset_is_compared_with_its_list(own, capsys):
    forget_sums(own)
    listed = json.loads((own / "captions.val.json").read_text())
    listed["images"][2]["sha256"] = "0" * 64
    listed["annotations"][0]["caption"] = "something else"
    (own / "captions.val.json").write_text(json.dumps(listed))
    line = verify(own, capsys)
    assert "2 things are damaged" in line and "its record is not what is listed of it" in line


def test_a_flipped_bit_of_a_cache(scenes_dir, tmp_path, capsys):
    cache = make(scenes_dir, tmp_path / "cache")
    for name in cache.files:
        path = cache.directory / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert f"{name} is not as it was written" in verify(cache.directory, capsys)
        path.write_bytes(whole)
