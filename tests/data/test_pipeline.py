"""The pipeline: exact to resume, fair to every image, the same in any number of processes."""

import collections
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from har_jax.data import pipeline
from har_jax.data.builder import write
from har_jax.data.dataset import Example, open_split
from har_jax.data.decode import Files
from har_jax.data.images import Preprocessor
from har_jax.data.pipeline import EncodedCaptions, TrainBatches, eval_batches
from har_jax.errors import UserError
from tests.conftest import ROOT

PREPROCESSOR = Preprocessor.for_size(16)


@pytest.fixture(scope="module")
def open_batches(scenes_dir, tokenizer):
    split = open_split(scenes_dir, "train")

    def make(**options):
        options = {
            "batch_size": 4,
            "captions_per_image": 5,
            "max_tokens": 40,
            "seed": 0,
        } | options
        return TrainBatches(split, PREPROCESSOR, tokenizer, **options)

    return make


def ids(batches, count):
    return [batch["image_id"].tolist() for batch in itertools.islice(batches, count)]


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
    return True


def test_a_batch_is_images_with_all_their_captions(open_batches, scenes_dir, tokenizer):
    split = open_split(scenes_dir, "train")
    examples = {example.image_id: example for example in split}
    batch = next(open_batches())
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((4, 16, 16, 3), np.float32),
        "image_id": ((4,), np.int64),
        "tokens": ((4, 5, 40), np.int32),
        "lengths": ((4, 5), np.int32),
    }
    for b, image_id in enumerate(batch["image_id"].tolist()):
        example = examples[image_id]
        np.testing.assert_array_equal(batch["image"][b], PREPROCESSOR(example.image))
        for row, length, caption in zip(
            batch["tokens"][b], batch["lengths"][b], example.captions, strict=True
        ):
            assert row[:length].tolist() == tokenizer.encode(caption)
            assert row[length - 1] == tokenizer.eos_id
            assert tokenizer.decode(row) == caption


def test_the_seed_decides_the_order(open_batches):
    first = ids(open_batches(), 20)
    assert ids(open_batches(), 20) == first
    assert ids(open_batches(seed=1), 20) != first


def test_every_epoch_shows_each_image_once_in_another_order(open_batches):
    stream = np.concatenate(ids(open_batches(), 30))  # 120 = 4 epochs of 30
    epochs = stream.reshape(4, 30)
    assert all(len(set(epoch)) == 30 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_epoch(open_batches, count):
    """Together they see what one process sees, in the same steps; and each image once an epoch."""
    alone = open_batches(batch_size=8)
    shards = [
        open_batches(batch_size=8 // count, process_index=i, process_count=count)
        for i in range(count)
    ]
    seen = collections.Counter()
    for _ in range(15):  # 15 * 8 = 4 epochs of 30
        whole = next(alone)
        parts = [next(shard) for shard in shards]
        same(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})
        seen.update(whole["image_id"].tolist())
    assert set(seen.values()) == {4} and len(seen) == 30


READER = """
import json, sys
from har_jax.data.dataset import open_split
from har_jax.data.decode import Files
from har_jax.data.images import Preprocessor
from har_jax.data.pipeline import TrainBatches
from har_jax.text.tokenizer import load_tokenizer

directory, tokenizer, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
batches = TrainBatches(
    open_split(directory, "train"), Preprocessor.for_size(16), load_tokenizer(tokenizer),
    batch_size=5, captions_per_image=5, max_tokens=40, seed=7,
    process_index=index, process_count=2,
)
for _ in range(6):  # of 2 * 5 images: two epochs of 30
    batch = next(batches)
    rows = zip(batch["image_id"].tolist(), batch["tokens"], batch["image"])
    print(json.dumps([[i, tokens.tolist(), float(image.sum())] for i, tokens, image in rows]))
"""


def test_two_processes_see_every_example_once_per_epoch(scenes_dir, tokenizer_dir, tokenizer):
    """Real processes, which know of each other only their number."""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, scenes_dir, tokenizer_dir, str(index)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    printed = [reader.communicate(timeout=120)[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    steps = [[json.loads(line) for line in text.splitlines()] for text in printed]
    assert [len(of) for of in steps] == [6, 6]
    examples = {example.image_id: example for example in open_split(scenes_dir, "train")}
    for epoch in (range(3), range(3, 6)):
        seen = [row for step in epoch for of in steps for row in of[step]]
        assert sorted(row[0] for row in seen) == sorted(examples)
        for image_id, tokens, total in seen:
            example = examples[image_id]
            assert [tokenizer.decode(row) for row in tokens] == example.captions
            assert total == pytest.approx(float(PREPROCESSOR(example.image).sum()))
    own = [{row[0] for step in range(3) for row in of[step]} for of in steps]
    assert not own[0] & own[1]


@settings(max_examples=settings.default.max_examples // 10)
@given(before=st.integers(0, 25), after=st.integers(1, 6), count=st.sampled_from([1, 2, 4]))
def test_resuming_anywhere_gives_the_same_rest(open_batches, before, after, count):
    options = {"batch_size": 8 // count, "process_index": count - 1, "process_count": count}
    unbroken = open_batches(**options)
    for _ in range(before):
        next(unbroken)
    state = json.loads(json.dumps(unbroken.get_state()))
    rest = [next(unbroken) for _ in range(after)]
    resumed = open_batches(**options)
    next(resumed)  # what was read before does not matter
    resumed.set_state(state)
    assert all(same(a, next(resumed)) for a in rest)


@settings(max_examples=settings.default.max_examples // 10)
@given(
    before=st.integers(0, 25),
    then=st.sampled_from([1, 2, 4]),
    now=st.sampled_from([1, 2, 4]),
)
def test_a_state_serves_another_number_of_processes(open_batches, before, then, now):
    """Stopped in `then` processes, continued in `now`: what is left is the same, global batch by
    global batch."""

    def parts(count):
        return [
            open_batches(batch_size=8 // count, process_index=i, process_count=count)
            for i in range(count)
        ]

    stopped = parts(then)
    for part in stopped:
        ids(part, before)
    states = [part.get_state() for part in stopped]
    assert all(state == states[0] for state in states)  # any process may save it
    continued = parts(now)
    for part in continued:
        part.set_state(states[-1])
    for _ in range(2):
        rest, resumed = (
            {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
            for batches in ([next(part) for part in many] for many in (stopped, continued))
        )
        same(rest, resumed)


def test_a_state_of_something_else_is_refused(open_batches):
    state = open_batches().get_state()
    for options in ({"seed": 1}, {"batch_size": 5}):
        with pytest.raises(UserError, match="resume with the same data, seed"):
            open_batches(**options).set_state(state)


def test_cached_pixels_are_the_same(open_batches):
    cached, fresh = open_batches(), open_batches(cache_images=False)
    assert open_batches(cache_bytes=100)._looks._cache is None
    assert cached._looks._cache is not None
    for _ in range(20):
        same(next(cached), next(fresh))


@pytest.fixture(scope="module")
def ragged_dir(small_scenes, tmp_path_factory):
    """Images of 1 to 7 references, as COCO has."""
    directory = tmp_path_factory.mktemp("ragged") / "d"
    image = small_scenes[0][1].image
    examples = [
        ("train", Example(i, f"{i}.png", image, [f"caption {k} of {i}" for k in range(i)]))
        for i in range(1, 8)
    ]
    write(directory, examples, name="ragged", splits=["train"], description="", settings={})
    return directory


def test_images_of_few_and_many_references(ragged_dir, tokenizer):
    split = open_split(ragged_dir, "train")
    batches = TrainBatches(
        split, PREPROCESSOR, tokenizer, batch_size=7, captions_per_image=3, max_tokens=30, seed=0
    )
    shown = collections.defaultdict(collections.Counter)
    subsets = collections.defaultdict(set)
    for batch in itertools.islice(batches, 60):
        for image_id, rows, lengths in zip(
            batch["image_id"].tolist(), batch["tokens"], batch["lengths"], strict=True
        ):
            texts = [tokenizer.decode(row[:n]) for row, n in zip(rows, lengths, strict=True) if n]
            assert len(texts) == min(3, image_id)
            assert (lengths[len(texts) :] == 0).all()
            assert texts == [t for t in split.references()[image_id] if t in texts]  # in order
            shown[image_id].update(texts)
            subsets[image_id].add(tuple(texts))
    for image_id, counts in shown.items():
        assert set(counts) == set(split.references()[image_id])
        assert len(subsets[image_id]) == 1 if image_id <= 3 else len(subsets[image_id]) > 2
    # 60 epochs * 3 of 7: each caption about 26 times
    assert min(shown[7].values()) > 12 and max(shown[7].values()) < 42


def test_captions_that_are_too_long_are_cut_and_counted(scenes_dir, tokenizer, caplog):
    split = open_split(scenes_dir, "train")
    lengths = [len(tokenizer.encode(text)) for texts in split.captions for text in texts]
    encoded = EncodedCaptions(split.captions, tokenizer, 12)
    assert encoded.truncated == sum(n > 12 for n in lengths) > 0
    assert encoded.count == 150
    assert "of 150 captions have more than max_tokens=12" in caplog.text
    tokens, kept = encoded.take(np.array([[0, i] for i in range(30)]), 5, seed=0)
    assert tokens.shape == (30, 5, 12)
    assert kept.ravel().tolist() == [min(n, 12) for n in lengths]
    ended = (tokens == tokenizer.eos_id).any(-1).ravel()
    assert ended.tolist() == [n <= 12 for n in lengths]


def test_evaluation_is_one_pass_in_order(scenes_dir):
    split = open_split(scenes_dir, "val")  # 7 images
    batches = list(eval_batches(split, PREPROCESSOR, batch_size=3))
    assert [batch["image"].shape for batch in batches] == [(3, 16, 16, 3)] * 3
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid.tolist() == [True] * 7 + [False] * 2
    image_ids = np.concatenate([batch["image_id"] for batch in batches])
    assert image_ids[:7].tolist() == split.ids
    assert image_ids[7:].tolist() == split.ids[-1:] * 2
    pixels = np.concatenate([batch["image"] for batch in batches])
    expected = [PREPROCESSOR(example.image) for example in split]
    np.testing.assert_array_equal(pixels[:7], expected)
    np.testing.assert_array_equal(pixels[7:], [expected[-1]] * 2)


def test_evaluation_gives_captions_too(ragged_dir, tokenizer):
    split = open_split(ragged_dir, "train")
    encoded = EncodedCaptions(split.captions, tokenizer, 12)
    options = {"batch_size": 4, "captions": (encoded, 3)}
    batches, again = (list(eval_batches(split, PREPROCESSOR, **options)) for _ in range(2))
    assert all(map(same, batches, again))
    for batch in batches:
        assert batch["tokens"].shape == (4, 3, 12)
        for i, tokens, lengths, valid in zip(
            batch["image_id"], batch["tokens"], batch["lengths"], batch["valid"], strict=True
        ):
            references = split.references()[i]
            assert (lengths > 0).sum() == (min(3, len(references)) if valid else 0)
            shown = [tokenizer.decode(row) for row in tokens[lengths > 0]]
            assert [text for text in references if text in shown] == shown
    assert not batches[-1]["valid"].all()


def test_files_are_images(scenes_dir, tmp_path):
    """Whatever has a length, ids and bytes can be captioned; files are read when asked for."""
    split = open_split(scenes_dir, "val")
    paths = [tmp_path / f"{i}.png" for i in range(len(split))]
    for path, example in zip(paths, split, strict=True):
        path.write_bytes(example.image)
    files = Files(paths)
    files.check()
    for ours, theirs in zip(
        *(eval_batches(images, PREPROCESSOR, batch_size=3) for images in (files, split)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
    assert list(files.ids) == list(range(7)) and files.read(2) == split.read(2)
    paths[3].write_text("none")
    paths[5].unlink()
    with pytest.raises(UserError, match=r"3\.png is not an image"):
        files.check()
    with pytest.raises(UserError, match=r"3\.png is not an image"):
        list(eval_batches(files, PREPROCESSOR, batch_size=3))
    with pytest.raises(UserError, match=r"5\.png cannot be read: No such file .*; give image"):
        files.read(5)
    with pytest.raises(UserError, match=r"cannot be read: Is a directory; give image files"):
        Files([tmp_path]).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"captions_per_image": 0}, "captions_per_image is 0"),
        ({"max_tokens": 1}, "max_tokens is 1"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2 of 2"),
    ],
)
def test_sizes_that_make_no_sense(open_batches, options, message):
    with pytest.raises(UserError, match=message):
        open_batches(**options)


def test_an_image_that_does_not_decode_is_named(tmp_path, tokenizer):
    examples = [("train", Example(9, "bad.jpg", b"not an image", ["a"]))]
    write(tmp_path / "d", examples, name="bad", splits=["train"], description="", settings={})
    split = open_split(tmp_path / "d", "train")
    with pytest.raises(UserError, match=r"bad\.jpg \(id 9\)"):
        next(
            TrainBatches(
                split,
                PREPROCESSOR,
                tokenizer,
                batch_size=1,
                captions_per_image=1,
                max_tokens=9,
                seed=0,
            )
        )
    with pytest.raises(UserError, match=r"bad\.jpg \(id 9\)"):
        next(eval_batches(split, PREPROCESSOR, batch_size=1))


def test_it_keeps_up_with_training(open_batches):
    """A step of the demo takes tens of milliseconds; data must not be what it waits for."""
    import time

    batches = open_batches(batch_size=30)
    ids(batches, 3)  # the first epoch decodes
    begin = time.perf_counter()
    ids(batches, 60)
    assert time.perf_counter() - begin < 60 / 50
    assert pipeline.CACHE_BYTES >= 4000 * 64 * 64 * 3
