"""Datasets on disk: TFDS itself reads them, and nothing is ever half there."""

import errno
import io
import json
import logging
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from har_jax.data import builder, dataset
from har_jax.data.dataset import Example, open_split
from har_jax.data.shards import quiet
from har_jax.errors import UserError
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.text import ptb
from tests.conftest import ROOT


def png(shade=0, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def write(directory, examples, **options):
    options = {"name": "made", "splits": ["train", "val"], "overwrite": False} | options
    return builder.write(directory, examples, description="d", settings={"s": 1}, **options)


def forget_sums(directory):
    """As a dataset of an older version, whose card lists no files."""
    card = json.loads((directory / "dataset.json").read_text())
    del card["files"]
    (directory / "dataset.json").write_text(json.dumps(card))


def test_tfds_reads_what_we_wrote(scenes_dir, small_scenes):
    import tensorflow_datasets as tfds

    read = tfds.builder_from_directory(scenes_dir)
    for split in ("train", "val", "test"):
        ours = [example for name, example in small_scenes if name == split]
        theirs = read.as_data_source(split)
        assert len(theirs) == len(ours)
        for example, record in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(
                record["image"], np.asarray(Image.open(io.BytesIO(example.image)))
            )
            assert record["image/id"] == example.image_id
            assert record["image/filename"].decode() == example.filename
            assert [t.decode() for t in record["captions"]["text"]] == example.captions


def test_a_split_gives_the_examples_back(scenes_dir, small_scenes):
    split = open_split(scenes_dir, "val")
    ours = [example for name, example in small_scenes if name == "val"]
    assert len(split) == 7
    for a, b in zip(split, ours, strict=True):
        assert (a.image_id, a.filename, a.image, a.captions) == (
            b.image_id,
            b.filename,
            b.image,
            b.captions,
        )
    assert split[-1].image_id == ours[-1].image_id
    with pytest.raises(IndexError):
        split[7]
    assert split.ids == [example.image_id for example in ours]
    assert split.references() == {example.image_id: example.captions for example in ours}
    copy = pickle.loads(pickle.dumps(split))
    assert copy[3].image == split[3].image


def test_references_need_no_image(scenes_dir, monkeypatch):
    monkeypatch.setattr(dataset.Split, "__getitem__", lambda *_: pytest.fail("read a record"))
    assert len(open_split(scenes_dir, "train").references()) == 30


def test_a_foreign_tfds_directory_reads_as_well(scenes_dir, tmp_path):
    foreign = tmp_path / "foreign"
    shutil.copytree(scenes_dir, foreign)
    for path in [*foreign.glob("captions.*"), *foreign.glob("*.npz"), foreign / "dataset.json"]:
        path.unlink()
    ours, theirs = open_split(scenes_dir, "train"), open_split(foreign, "train")
    assert theirs.references() == ours.references()
    assert theirs.filenames == ours.filenames
    assert dataset.read_card(foreign) == {}


def test_coco_captions_as_tfds_itself_writes_it(tmp_path):
    """The whole schema, boxes included, in TFDS' own file names: as `tfds build` leaves it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    box = {
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "id": np.int64,
        "is_crowd": np.bool_,
        "label": tfds.features.ClassLabel(num_classes=80),
    }
    features = tfds.features.FeaturesDict(
        {
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(box),
        }
    )
    directory = tmp_path / "coco_captions" / "2014" / "1.1.0"
    directory.mkdir(parents=True)
    identity = DatasetIdentity("coco_captions", tfds.core.Version("1.1.0"), directory, "tfds")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    one = {
        "area": 5,
        "bbox": tfds.features.BBox(0.1, 0.1, 0.5, 0.5),
        "id": 3,
        "is_crowd": False,
        "label": 7,
    }
    records = [
        {
            "captions": [{"id": 10 * i + k, "text": f"text {i} {k}"} for k in range(5 + (i == 1))],
            "image": png(i),
            "image/filename": f"COCO_{i}.jpg",
            "image/id": i,
            "objects": [one] * i,
        }
        for i in range(3)
    ]
    with quiet():
        sequential = tfds.core.SequentialWriter(info, 2, file_format="array_record")
        sequential.initialize_splits(["restval"])
        sequential.add_examples({"restval": records})
        sequential.close_all()
    split = open_split(directory, "restval")
    assert split.ids == [0, 1, 2] and [len(those) for those in split.captions] == [5, 6, 5]
    assert split[1].image == png(1) and split[2].filename == "COCO_2.jpg"
    assert dataset.id_space(directory) == "coco" and dataset.split_names(directory) == ["restval"]


def test_an_index_of_other_records_is_refused(scenes_dir, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(scenes_dir, mixed)
    shutil.copy(mixed / "captions.val.json", mixed / "captions.train.json")
    with pytest.raises(UserError, match=r"captions\.train\.json has .* and was written with"):
        open_split(mixed, "train")
    forget_sums(mixed)
    with pytest.raises(UserError, match="7 images but the records of 'train' hold 30"):
        open_split(mixed, "train").references()


def test_an_index_in_another_order_is_found_as_images_are_read(scenes_dir, tmp_path):
    """Captions of other images would be learned, without a word."""
    mixed = tmp_path / "mixed"
    shutil.copytree(scenes_dir, mixed)
    forget_sums(mixed)
    coco = json.loads((mixed / "captions.train.json").read_text())
    coco["images"].reverse()
    (mixed / "captions.train.json").write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"record 0 of 'train' .* they do not belong together"):
        open_split(mixed, "train").read(0)


def test_document_frequencies_are_those_of_the_split(scenes_dir):
    for split in ("train", "val"):
        references = open_split(scenes_dir, split).references().values()
        counted = DocumentFrequency.from_references(
            [[ptb.words(text) for text in texts] for texts in references], name=split
        )
        stored = DocumentFrequency.load(dataset.document_frequency_path(scenes_dir, split))
        assert stored.fingerprint == counted.fingerprint
        assert stored.n_images == len(references)


def test_the_card_tells_what_is_in_it(tmp_path):
    examples = [
        ("train", Example(5, "a.png", png(), ["A red ball.", "a ball"])),
        ("train", Example(6, "b.png", png(1), ["Two red balls, and a third!"])),
    ]
    card = write(tmp_path / "d", examples)
    assert card == json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert list(card["splits"]) == ["train"]  # the empty one is left out
    assert card["splits"]["train"] == {
        "images": 2,
        "captions": 3,
        "references_per_image": {"1": 1, "2": 1},
        "vocabulary": 7,
        "words_per_caption": {"mean": 3.67, "median": 3, "max": 6},
    }
    assert card["dropped"] == {}


def test_caption_ids_and_any_text_survive(tmp_path):
    text = 'Ein Mädchen — 女の子 \U0001f600 "quoted"\n'
    write(tmp_path / "d", [("val", Example(2**40, "ü.png", png(), [text], (77,)))])
    example = open_split(tmp_path / "d", "val")[0]
    assert (example.image_id, example.filename, example.captions, example.caption_ids) == (
        2**40,
        "ü.png",
        [text],
        (77,),
    )
    assert open_split(tmp_path / "d", "val").captions == [[text]]


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "EXAMPLES_PER_SHARD", 4)
    examples = [("train", Example(100 - i, f"{i}.png", png(i), [f"w {i}"])) for i in range(11)]
    write(tmp_path / "d", examples)
    assert len(list((tmp_path / "d").glob("*.array_record*"))) == 3
    split = open_split(tmp_path / "d", "train")
    assert [example.image_id for example in split] == split.ids
    assert split.ids == [100 - i for i in range(11)]


def test_nothing_is_left_when_writing_fails(tmp_path):
    def broken():
        yield "train", Example(1, "a.png", png(), ["a"])
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write(tmp_path / "d", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_said(tmp_path):
    def full():
        yield "train", Example(1, "a.png", png(), ["a"])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left on device; nothing is kept"):
        write(tmp_path / "d", full())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/d"):
        write(tmp_path / "file" / "d", [])


def test_a_failed_overwrite_keeps_what_was_there(tmp_path):
    write(tmp_path / "d", [("train", Example(1, "a.png", png(), ["old"]))])

    def broken():
        yield "train", Example(1, "a.png", png(), ["new"])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(tmp_path / "d", broken(), overwrite=True)
    assert open_split(tmp_path / "d", "train").captions == [["old"]]
    write(tmp_path / "d", [("train", Example(1, "a.png", png(), ["new"]))], overwrite=True)
    assert open_split(tmp_path / "d", "train").captions == [["new"]]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_two_writers_of_one_directory(tmp_path):
    """The second is refused at once and does not disturb the first."""

    def slow():
        yield "train", Example(1, "a.png", png(), ["slow"])
        with pytest.raises(UserError, match="another process is writing"):
            write(tmp_path / "d", [("train", Example(1, "a.png", png(), ["quick"]))])
        yield "train", Example(2, "b.png", png(1), ["on"])

    write(tmp_path / "d", slow())
    assert open_split(tmp_path / "d", "train").captions == [["slow"], ["on"]]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_what_came_there_meanwhile_is_left_alone(tmp_path):
    def slow():
        yield "train", Example(1, "a.png", png(), ["slow"])
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "thesis.tex").write_text("")

    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "d", slow())
    assert [path.name for path in tmp_path.rglob("*")] == ["d", "thesis.tex"]


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "no image to write"),
        ([("train", Example(1, "a", png(), ["x"]))] * 2, {}, "image id 1 occurs twice"),
        ([], {"splits": ["Train set"]}, "'Train set' cannot name"),
    ],
)
def test_what_cannot_be_a_dataset(tmp_path, examples, options, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "d", examples, **options)
    assert list(tmp_path.iterdir()) == []


def test_directories_that_are_taken(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    (tmp_path / "empty").mkdir()
    example = [("train", Example(1, "a.png", png(), ["x"]))]
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "file", example)
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "home", example)
    with pytest.raises(UserError, match="is not a dataset"):
        write(tmp_path / "home", example, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()
    write(tmp_path / "empty", example)


def test_what_is_not_there_is_said(scenes_dir, tmp_path):
    with pytest.raises(UserError, match=r"does not exist; make one with .*prepare scenes"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="is not a dataset"):
        open_split(tmp_path, "train")
    with pytest.raises(UserError, match=r"no split 'tets' \(did you mean 'test'\?\).*val \(7"):
        open_split(scenes_dir, "tets")


def test_a_dataset_of_another_kind_is_refused(scenes_dir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(scenes_dir, other)
    features = json.loads((other / "features.json").read_text())
    del features["featuresDict"]["features"]["captions"]
    (other / "features.json").write_text(json.dumps(features))
    forget_sums(other)
    with pytest.raises(UserError, match=r"lacks the features \['captions'\]"):
        open_split(other, "train")
    (other / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json' is not valid JSON"):
        open_split(other, "train")


def test_tfds_does_not_chatter(scenes_dir, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        open_split(scenes_dir, "train")[0]
    assert [record for record in caplog.records if record.name == "absl"] == []
    assert capfd.readouterr() == ("", "")


def test_threads_that_read_import_nothing(scenes_dir):
    """TFDS, imported by several threads at once, can let them wait for each other for ever."""
    code = f"""
import concurrent.futures, sys
from har_jax.data.dataset import open_split
split = open_split({str(scenes_dir)!r}, "train")
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(int, "1234"))
    before = set(sys.modules)
    list(pool.map(split.__getitem__, range(8)))
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
