"""Captions in lists and in objects, and names that are one file, in folders and token files."""

import csv
import io

import pytest

from har_jax.data.entries import Problems
from har_jax.data.image_files import ImageFiles
from har_jax.data.readers import coco, flickr, folder, rows
from har_jax.data.readers.shares import Shares
from har_jax.errors import UserError

OTHER_LISTS = {
    "Python's tuples": "('a dog', \"it's a cat\")",
    "Python's sets": "{'a dog', \"it's a cat\"}",
    "NumPy's arrays": "array(['a dog', \"it's a cat\"], dtype=object)",
    "PostgreSQL's arrays": '{"a dog","it\'s a cat"}',
}


@pytest.mark.parametrize("cell", OTHER_LISTS.values(), ids=OTHER_LISTS)
def test_lists_in_other_hands(cell):
    assert rows.texts_of(cell) == ["a dog", "it's a cat"]


@pytest.mark.parametrize(
    "cell",
    [
        '("Stop" says a sign)',
        '("Stop")',
        "(a dog)",
        "[laughs] a dog [laughs]",
        "{a dog}",
        "[",
        "'a'",
    ],
)
def test_brackets_that_are_a_captions_own(cell):
    assert rows.texts_of(cell) == [cell]


@pytest.mark.parametrize(
    "cell",
    ['{"raw": "a dog"}', "{'raw': 'a dog'}", "[['a dog', 'a cat']]", "[{'raw': \"it's a dog\"}]"],
)
def test_objects_in_a_cell_are_no_captions(save, read, cell):
    problems = Problems()
    file = io.StringIO()
    csv.writer(file).writerows([("image", "caption"), ("a.jpg", cell), ("b.jpg", "a cat")])
    assert read(save(file.getvalue(), "c.csv"), problems=problems) == {
        "b.jpg": ("train", ["a cat"])
    }
    assert problems.counts["captions that are not text"] == 1


def test_two_columns_of_one_name_are_refused(save, read):
    with pytest.raises(UserError, match="two columns 'caption', of which a row could keep one"):
        read(save("image,Caption,caption\na.jpg,a dog,a cat\n", "c.csv"))
    assert read(save("x,image,caption,x\n1,a.jpg,a dog,2\n", "d.csv"))


@pytest.mark.parametrize("is_array", [False, True])
def test_a_key_twice_in_a_row_of_json_is_malformed(save, read, is_array):
    problems = Problems()
    lines = '{"image": "a.jpg", "caption": "a dog", "caption": "a cat"}\n'
    lines += '{"image": "a.jpg", "caption": "a dog", "Caption": "a cat"}\n'
    lines += '{"image": "b.jpg", "caption": "a rat"}\n'
    if is_array:
        lines = f" [\n{','.join(lines.splitlines())} ] \n"
    found = read(save(lines, "c.jsonl"), problems=problems)
    assert found == {"b.jpg": ("train", ["a rat"])}
    assert problems.counts["malformed rows"] == 2


def test_names_of_one_file_are_one_image(save, read):
    text = "image,caption\nx/a.jpg,one\n./x/a.jpg,two\nx//a.jpg,three\n"
    assert read(save(text, "c.csv")) == {"x/a.jpg": ("train", ["one", "two", "three"])}


def test_captions_in_a_column_that_is_not_read_are_told(save, tmp_path):
    path = save("image,caption,text\na.jpg,a dog,a cat\nb.jpg,a rat,\n", "c.csv")

    def notes(**how):
        shares = Shares()
        return folder.read_folder(tmp_path, [path], shares=shares, problems=Problems(), **how).notes

    assert [f"{path}: of 1 rows `caption` is read and `text` is not" in n for n in notes()] == [
        True
    ]
    assert notes(columns=folder.Columns("", "text")) == ()


def test_what_is_there_and_no_file_is_told(tmp_path):
    """As in a clone of git-annex, whose images are links to what was not fetched."""
    (tmp_path / "a.jpg").symlink_to("../annex/objects/a.jpg")
    (tmp_path / "b.jpg").mkdir()
    files = ImageFiles([tmp_path])
    assert files.near("a.jpg") == " (a link to nothing: is its content here?)"
    assert files.near("b.jpg") == " (not a file)"
    assert files.near("A.jpg") == " (did you mean 'a.jpg'?)" and files.near("c.jpg") == ""


def test_names_of_one_file_in_a_token_file(save):
    path = save("a.jpg#0\tone\n./a.jpg#1\ttwo\n", "c.token")
    (entry,) = flickr.read_file(path, shares=Shares(), problems=Problems()).entries
    assert [text for _, text in entry.captions] == ["one", "two"]


def test_two_images_of_one_id_are_refused(save):
    """Nothing says whose a caption is."""
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1.0, "file_name": "b.jpg"}]
    annotations = [{"id": 1, "image_id": 1, "caption": "one"}]
    path = save({"images": images, "annotations": annotations}, "c.json")
    with pytest.raises(UserError, match=r"'a\.jpg' and 'b\.jpg' have the id 1; ids must be unique"):
        coco.read_files([path], problems=Problems())
    problems = Problems()
    path = save({"images": images[:1] * 2, "annotations": annotations}, "d.json")
    (entry,) = coco.read_files([path], problems=problems).entries
    assert entry.captions == ((1, "one"),) and problems.counts["images listed twice"] == 1
