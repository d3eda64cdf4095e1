"""Captions are kept as they are written: a killed run goes on, and other settings are refused."""

import json

import pytest

from har_jax.data.protocols import Part, Written
from har_jax.errors import UserError
from har_jax.evaluation.kept import NAME, KeptWriter

KEY = {"beams": 5, "how": {"prompt": "a"}}


class Pictures:
    def __init__(self, n, first=10):
        self.ids = range(first, first + n)

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        return b"%d" % self.ids[i]


class Killed(Exception):
    pass


class Writer:
    """Writes what it reads, and dies before its k-th caption."""

    def __init__(self, dies_at=None):
        self.dies_at, self.read = dies_at, []

    def write(self, images):
        for i in range(len(images)):
            if len(self.read) == self.dies_at:
                raise Killed
            self.read.append(images.read(i))
            yield Written(f"picture {images.read(i).decode()}", i % 2 == 0)


def captions(writer, folder, images, key=KEY):
    return list(KeptWriter(writer, folder / NAME, key).write(images))


@pytest.mark.parametrize("dies_at", [0, 1, 4])
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_goes_on_where_it_was(tmp_path, dies_at, cut):
    whole = captions(Writer(), tmp_path / "whole", Pictures(6))
    with pytest.raises(Killed):
        captions(Writer(dies_at), tmp_path, Pictures(6))
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[: -cut or None])  # the last line as a kill leaves it
    again = Writer()
    found = captions(again, tmp_path, Pictures(6))
    assert [w.text for w in found] == [w.text for w in whole]
    kept = max(0, dies_at - (cut > 0))
    assert again.read == [b"%d" % i for i in range(10 + kept, 16)]
    assert captions(Writer(0), tmp_path, Pictures(6)) == found, "nothing is written twice"
    more = captions(Writer(), tmp_path, Pictures(8))
    assert len(more) == 8 and more[:6] == found


def test_the_time_of_earlier_processes_counts(tmp_path):
    with pytest.raises(Killed):
        captions(Writer(3), tmp_path, Pictures(6))
    writer = KeptWriter(Writer(), tmp_path / NAME, KEY)
    list(writer.write(Pictures(6)))
    rows = [json.loads(line) for line in (tmp_path / NAME).read_text().splitlines()[1:]]
    assert len(rows) == 6 and writer.seconds >= sum(row["seconds"] for row in rows) - 1e-3


def test_other_settings_images_and_files_are_refused(tmp_path):
    captions(Writer(), tmp_path, Pictures(3))
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(UserError, match=r"other settings \(prompt 'a' there, 'b' here\)"):
        captions(Writer(), tmp_path, Pictures(3), {**KEY, "how": {"prompt": "b"}})
    with pytest.raises(UserError, match="captions of other images"):
        captions(Writer(), tmp_path, Pictures(3, first=11))
    assert (tmp_path / NAME).read_bytes() == before
    (tmp_path / NAME).write_text("[1]\n")
    with pytest.raises(UserError, match="not a file of kept captions"):
        captions(Writer(), tmp_path, Pictures(3))


@pytest.mark.parametrize("text", ["my own captions", '{"image_id": 1}\n{"cut', '{"key": {}}\n7\nx'])
def test_a_file_that_is_not_ours_stays_as_it_is(tmp_path, text):
    """Removing what a kill cut off comes after seeing whose it is."""
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match="not a file of kept captions"):
        captions(Writer(), tmp_path, Pictures(3))
    assert (tmp_path / NAME).read_text() == text


def test_two_processes_do_not_write_one_file(tmp_path):
    first = KeptWriter(Writer(), tmp_path / NAME, KEY).write(Pictures(3))
    next(first)
    with pytest.raises(UserError, match="another process is writing"):
        captions(Writer(), tmp_path, Pictures(3))
    assert len(list(first)) == 2


def test_a_part_of_images():
    part = Part(Pictures(6), 2, 5)
    assert list(part.ids) == [12, 13, 14] and len(part) == 3 and part.read(1) == b"13"
