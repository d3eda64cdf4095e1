"""Tokenizers: every text survives, and Hugging Face's own classes give the same ids."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from har_jax.errors import UserError
from har_jax.text.tokenizer import (
    load_clip_tokenizer,
    load_tokenizer,
    train_clip_tokenizer,
    train_tokenizer,
)

TEXTS = [
    "A large red ball next to a small blue box on the sand.",
    "there is a striped green star above a yellow ring in the night sky",
    "Two shapes in the snow.",
    "An orange heart floating inside a big white ring in the water.",
] * 3
ODD = [
    "naïve café — 日本語 \U0001f600\U0001f468‍\U0001f469‍\U0001f467",
    "It's the dog's 1,234 LEGO-bricks... isn't it?!",
    "tabs\tand\nnew lines  and   spaces",
    "<s> not a start </s> nor an end <unk> <|endoftext|>",
    "ÀÉÎ ﬁ ① \x00 \x7f",
    "e\u0301 ä́",
    "",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 340, directory)
    return directory


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    train_clip_tokenizer(TEXTS, 600, directory, context_length=20)
    return directory


@given(TEXT)
def test_any_text_comes_back(small_dir, text):
    tokenizer = load_tokenizer(small_dir)
    ids = tokenizer.encode(text)
    assert ids[-1] == tokenizer.eos_id and tokenizer.eos_id not in ids[:-1]
    assert tokenizer.bos_id not in ids and max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text.strip()
    assert tokenizer.encode_batch([text, "a"]) == [ids, tokenizer.encode("a")]


@given(TEXT)
def test_any_text_comes_back_through_mistrals(mistral, text):
    """SentencePiece spells a space U+2581, so that one character comes back as a space."""
    assert mistral.decode(mistral.encode(text)) == text.replace("▁", " ").strip()


@pytest.fixture(scope="module")
def mistral(real_data):
    return load_tokenizer(real_data / "tokenizers" / "mistral_v1")


def test_special_tokens_stand_as_in_mistral(small_dir, mistral):
    for tokenizer in (load_tokenizer(small_dir), mistral):
        assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
        assert [tokenizer.token(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert mistral.vocab_size == 32000
    assert load_tokenizer(small_dir).vocab_size <= 340


def test_decode_stops_at_the_first_end(small_dir):
    tokenizer = load_tokenizer(small_dir)
    ids = tokenizer.encode("a red ball") + tokenizer.encode("and more")
    assert tokenizer.decode(ids) == "a red ball"
    assert tokenizer.decode(np.array(ids[:2], np.int32)) == tokenizer.decode(ids[:2])
    assert tokenizer.decode([tokenizer.bos_id, *ids]) == "a red ball"
    assert tokenizer.decode([]) == ""


def test_mistrals_ids_are_those_of_sentencepiece(real_data, mistral):
    """On all real captions. SentencePiece keeps white space at either end, and we drop it: the
    captions that have some (a blank or a line's end, mostly after the full stop) are those that
    differ, and they no longer do once stripped."""
    captions = json.loads((real_data / "coco_val2017_captions.json").read_text())["annotations"]
    captions = [annotation["caption"] for annotation in captions]
    model = real_data / "tokenizers/mistral_v1/tokenizer.model"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = mistral.encode_batch(captions)
    assert all(ids[-1] == mistral.eos_id for ids in ours)
    ours = [ids[:-1] for ids in ours]
    assert ours == pieces.Encode([caption.strip() for caption in captions])

    padded = [caption != caption.strip() for caption in captions]
    as_they_are = pieces.Encode(captions)
    assert [a != b for a, b in zip(ours, as_they_are, strict=True)] == padded
    assert (len(captions), sum(padded)) == (25_014, 3_541)
    assert sum(caption != caption.rstrip() for caption in captions) == 3_501
    # Blanks within a caption are kept. Merged by id, as transformers does it, they would be wrong.
    doubled = [ids for ids, text in zip(ours, captions, strict=True) if "  " in text.strip()]
    assert len(doubled) == 296
    for ids in (*ours, pieces.Encode("a  b   c    d")):
        assert mistral.decode(ids) == pieces.Decode(ids).strip()


@pytest.mark.parametrize("which", ["ours", "gpt2"])
def test_auto_tokenizer_gives_the_same_ids(which, small_dir, request):
    import transformers

    directory = small_dir
    if which != "ours":
        directory = request.getfixturevalue("real_data") / "tokenizers" / which
    ours = load_tokenizer(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in TEXTS[:4] + [t for t in ODD if "<" not in t]:
        expected = theirs(text.strip(), add_special_tokens=False).input_ids
        assert ours.encode(text) == [*expected, theirs.eos_token_id]
        assert ours.decode(ours.encode(text)) == text.strip()
    assert theirs.bos_token_id == ours.bos_id
    if which == "ours":
        assert theirs("a ball").input_ids[0] == ours.bos_id  # with special tokens, as Mistral's


def test_training_is_deterministic(small_dir, clip_dir, tmp_path):
    """In another process, where hashes of strings fall otherwise."""
    code = (
        "import json, sys; from har_jax.text.tokenizer import *; texts = json.loads(sys.argv[1]);"
        "print(train_tokenizer(texts, 340, sys.argv[2]).fingerprint,"
        "train_clip_tokenizer(texts, 600, sys.argv[3], 20).fingerprint,"
        "'transformers' in sys.modules)"
    )
    arguments = [json.dumps(TEXTS), str(tmp_path / "a"), str(tmp_path / "b")]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    expected = [load_tokenizer(small_dir).fingerprint, load_clip_tokenizer(clip_dir).fingerprint]
    assert result.stdout.split() == [*expected, "False"]


def test_the_fingerprint_tells_tokenizers_apart(small_dir, tmp_path):
    other = train_tokenizer(TEXTS, 330, tmp_path)
    assert other.fingerprint != load_tokenizer(small_dir).fingerprint
    assert load_tokenizer(tmp_path).fingerprint == other.fingerprint


@pytest.mark.parametrize("which", ["ours", "openai's"])
def test_clip_rows_are_those_of_clip_tokenizer(which, clip_dir, request):
    import transformers

    directory = clip_dir
    if which == "openai's":
        directory = request.getfixturevalue("real_data") / "tokenizers" / "clip"
    ours = load_clip_tokenizer(directory)
    assert ours.context_length == (20 if which == "ours" else 77)
    for kind in (transformers.AutoTokenizer, transformers.CLIPTokenizer):
        theirs = kind.from_pretrained(directory)
        texts = [*TEXTS[:4], *ODD[:3], *ODD[4:], "word " * 100]
        expected = theirs(
            texts,
            padding="max_length",
            truncation=True,
            max_length=ours.context_length,
            return_tensors="np",
        ).input_ids
        rows = ours(texts)
        assert rows.dtype == np.int32
        np.testing.assert_array_equal(rows, expected)
    assert (rows[:, 0] == ours.bos_id).all()
    assert (rows == ours.eos_id).any(axis=1).all() and rows[-1, -1] == ours.eos_id
    assert rows.max() == ours.eos_id == ours.vocab_size - 1  # CLIP pools at the largest id


def test_clip_lower_cases_and_knows_every_byte(clip_dir):
    tokenizer = load_clip_tokenizer(clip_dir)
    np.testing.assert_array_equal(tokenizer(["A RED Ball"]), tokenizer(["a red  ball"]))
    row = tokenizer(["日 \x7f ~"])[0]
    end = row.tolist().index(tokenizer.eos_id)
    assert end > 3 and (row[1:end] < tokenizer.vocab_size - 2).all()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer in"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json' is not valid JSON"),
        ({"tokenizer.json": '{"model": 3}'}, r"tokenizer\.json is not a tokenizer"),
        ({"tokenizer_config.json": "{"}, "no tokenizer in"),
    ],
)
def test_directories_without_a_tokenizer(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"no CLIP tokenizer|is not a tokenizer|not valid JSON"):
        load_clip_tokenizer(tmp_path)


def test_what_else_can_be_wrong(small_dir, tmp_path):
    with pytest.raises(UserError, match="no directory"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a CLIP's"):
        load_clip_tokenizer(small_dir)
    with pytest.raises(UserError, match="at least 259"):
        train_tokenizer(TEXTS, 100, tmp_path)
    with pytest.raises(UserError, match="at least 514"):
        train_clip_tokenizer(TEXTS, 100, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((small_dir / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="has no eos token"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 0]}')
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_ids) == (1, (2, 0))
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_ids) == (None, (2,))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 4000}')
    with pytest.raises(UserError, match=r"no eos token.*got 4000"):
        load_tokenizer(tmp_path)


def test_special_tokens_may_stand_in_a_map_of_their_own(small_dir, tmp_path):
    """As transformers 4 wrote them; `tokenizer_config.json` is right where both say something."""
    (tmp_path / "tokenizer.json").write_bytes((small_dir / "tokenizer.json").read_bytes())
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_id) == (1, 2)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<unk>", "bos_token": null}')
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_id) == (1, 0)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": ["</s>"]}')
    with pytest.raises(UserError, match=r"tokenizer_config.json: eos_token: needs str"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt line 2 is 'a b c', which is not two"),
        ("merges.txt", "alone\n", "line 1 is 'alone'"),
        ("merges.txt", "zz qq\n", "vocab.json and merges.txt are no tokenizer"),
        ("vocab.json", '{"<|startoftext|>": 0}', "lacks <|endoftext|>"),
        ("vocab.json", '{"<|startoftext|>": -1}', "needs int >= 0"),
        ("vocab.json", "[1]", "needs object, got array"),
        ("config.json", '{"text_config": 3}', "text_config: needs object | null, got int"),
        ("config.json", '{"text_config": {"max_position_embeddings": -5}}', "the length of a text"),
    ],
)
def test_damaged_files_of_a_clip_tokenizer(name, text, message, clip_dir, tmp_path):
    for kept in ("vocab.json", "merges.txt"):
        (tmp_path / kept).write_bytes((clip_dir / kept).read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_clip_tokenizer(tmp_path)


def test_ids_that_no_token_has(small_dir, tmp_path):
    contents = json.loads((small_dir / "tokenizer.json").read_text())
    vocab = contents["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    top = vocab[last]
    vocab[last] = top + 4
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == top + 5 and tokenizer.wordless == ((top, top + 4),)
    assert load_tokenizer(small_dir).wordless == ()


def test_nothing_is_split_by_chance(small_dir, clip_dir, tmp_path):
    """A file that was saved while training with BPE's dropout, with padding and truncation."""
    for directory in (small_dir, clip_dir):
        made = tmp_path / directory.name
        shutil.copytree(directory, made)
        file = json.loads((made / "tokenizer.json").read_text())
        file["model"]["dropout"] = 0.5
        file["truncation"] = dict(
            direction="Right", max_length=3, strategy="LongestFirst", stride=0
        )
        (made / "tokenizer.json").write_text(json.dumps(file))
    text = "a small red square left of a large blue circle"
    whole = load_tokenizer(small_dir).encode(text)
    chance = load_tokenizer(tmp_path / small_dir.name)
    assert all(chance.encode(text) == whole for _ in range(20))
    assert chance.encode_batch([text] * 20) == [whole] * 20
    rows = load_clip_tokenizer(tmp_path / clip_dir.name)([text] * 20)
    assert (rows == load_clip_tokenizer(clip_dir)([text])).all()
