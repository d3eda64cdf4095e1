"""JSON of others: whatever a file holds, a value or one line."""

from __future__ import annotations

import json
import os
import pathlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.arrays import read_npy
from har_jax.data.decode import decode
from har_jax.errors import UserError
from har_jax.foreign import Finite, Size, parse_json, read_json, read_text, typed
from har_jax.interchange.safetensors_file import read_header


class Entry(msgspec.Struct):
    id: int | str
    size: Size = 0
    share: Finite = 0.0


BAD_TEXTS = {
    "depth": ("[" * 200_000, "nested too deeply"),
    "a number of 5,000 digits": ("[" + "9" * 5_000 + "]", "cannot be read"),
    "half a character": ('{"a": ["b\\ud83d"]}', "middle of a character"),
    "half a character in a key": ('{"\\udc00": 1}', "middle of a character"),
    "cut off": ('[{"a": 1', "line 1"),
    "nothing": ("", "line 1"),
    "bytes of no text": (b'"\xff\xff"', "UTF-8"),
}


@pytest.mark.parametrize("text, message", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_texts(text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_json(text, "a.json", "captions")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_whole_pairs_are_characters() -> None:
    assert parse_json('["\\ud83d\\ude00"]', "a", "b") == ["😀"]
    assert parse_json('["\\ud83d"]', "a", "b", halves=True) == ["\ud83d"]


def test_bad_files(tmp_path: pathlib.Path) -> None:
    bad = [tmp_path, tmp_path / "none", tmp_path / ("n" * 300), "a\0b", "a\ud800", tmp_path / "a/b"]
    (tmp_path / "a").write_text("[]")
    for path in bad:
        with pytest.raises(UserError, match="give captions") as caught:
            read_json(path, "captions")
        assert "\n" not in str(caught.value)


def test_nobody_waits_for_a_pipe(tmp_path: pathlib.Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    reads = {
        "text": lambda path: read_text(path, "captions"),
        "image": decode,
        "array": lambda path: read_npy(path, "ids"),
        "weights": read_header,
    }
    for what, read in reads.items():
        for path in (pipe, link):
            with pytest.raises(UserError, match="a pipe or a device"):
                read(path)
                pytest.fail(what)


def test_what_the_shell_hands_over_is_read() -> None:
    ends = os.pipe()
    os.write(ends[1], b"[1]")
    os.close(ends[1])
    assert read_json(f"/dev/fd/{ends[0]}", "captions") == [1]
    os.close(ends[0])


BAD_VALUES = {
    "none": ([{"id": None}], r"\[0\].id: needs int \| str, got null"),
    "absent": ([{}], r"\[0\]: missing required field id"),
    "no list": ({"id": 1}, "needs array, got object"),
    "negative": ([{"id": 1, "size": -1}], r"\[0\].size: needs int >= 0"),
    "infinite": (json.loads('[{"id": 1, "share": 1e999}]'), "share: needs float <= "),
    "no number": (json.loads('[{"id": 1, "share": NaN}]'), "share: needs float >= "),
    "a truth": ([{"id": 1, "size": True}], "size: needs int, got bool"),
}


@pytest.mark.parametrize("value, message", BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        typed(value, list[Entry], "a.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
)


@given(JSON)
def test_a_value_of_its_kind_or_one_line(value: object) -> None:
    try:
        found = typed(value, list[Entry], "a.json")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(e.id, int | str) and 0 <= e.size < 2**53 for e in found)


WRITTEN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=10,
)


@given(
    WRITTEN,
    st.booleans(),
    st.text('[]{}",:\\\u0000 e1.-+nullNaN\ufeff', max_size=6),
    st.integers(0),
)
def test_a_text_is_read_as_json_reads_it(
    value: object, ascii_only: bool, noise: str, place: int
) -> None:
    """By a faster reader, where nothing is odd about it: in no case another value."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    at = place % (len(text) + 1)
    text = text[:at] + noise + text[at:]
    try:
        expected = repr(json.loads(text))
    except (ValueError, RecursionError):
        with pytest.raises(UserError):
            parse_json(text, "it", "JSON")
        return
    assert repr(parse_json(text, "it", "JSON", halves=True)) == expected
