"""CHAIR by hand, and against another way to find the words."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax import evaluate, metrics
from har_jax.errors import UserError
from har_jax.metrics import coco_words
from har_jax.text.words import PTB

COCO = {
    1: "person",
    3: "car",
    17: "cat",
    18: "dog",
    58: "hot dog",
    67: "dining table",
    88: "teddy bear",
}


def categories_of(text):
    return [found for _, found in coco_words.mentions(PTB(text))]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two men and a woman eat hot dogs.", ["person", "person", "hot dog"]),
        ("A hot-dog beside a dog", ["hot dog", "dog"]),
        ("A teddy bear, a polar bear and stuffed bears", ["teddy bear", "bear", "teddy bear"]),
        ("Train tracks near the train station", []),
        ("A passenger train passes parked cars", ["train", "car"]),
        ("a baby elephant with its mother", ["elephant", "person"]),
        ("mother and baby giraffes, a baby", ["giraffe", "person"]),
        ("an orange and white cat in an orange chair", ["cat", "chair"]),
        ("apples and oranges; an orange on a table", ["apple", "orange", "orange", "dining_table"]),
        ("a man in orange with a green and orange kite", ["person", "kite"]),
        ("wine glasses, a glass of milk, a glass door", ["wine glass", "cup"]),
        ("The toilet seat and toilet paper", ["toilet"]),
        ("a tooth brush and a toothbrush holder", ["toothbrush"]),
        ("knives, mice, sheep, geese, buses", ["knife", "mouse", "sheep", "bird", "bus"]),
        ("a catcher's mitt; the pitcher's bat", ["baseball glove", "person", "baseball bat"]),
        ("A man-made pond, an apple pie, a bed of lettuce", []),
        ("", []),
    ],
)
def test_words_by_hand(text, named):
    assert categories_of(text) == [(name.replace("_", " "),) for name in named]


def test_words_of_two_categories_name_either():
    assert categories_of("bikes") == [("bicycle", "motorcycle")]
    for there, rate in (("bicycle", 0), ("motorcycle", 0), ("car", 1)):
        assert metrics.chair(["a bike"], [[there]]).chair_s == rate


def test_the_categories_are_cocos_eighty():
    names = coco_words.categories()
    assert len(set(names)) == 80
    assert (names[0], names[10], names[79]) == ("person", "fire hydrant", "toothbrush")
    for name in names:
        assert (name,) == categories_of(name)[0] or name in ("orange",), name


def test_the_corpus_by_hand():
    """Three captions, six mentions, of which a car and two cats are not there."""
    predictions = {4: "A man and a dog by a car", 5: "cats, a cat and a woman", 6: "a red wall"}
    objects = {4: {"person", "dog"}, "5": [], 6: ["tv"], 7: ["bench"]}
    references = {4: ["a man"], 5: ["a lady smiles"], 6: ["nothing"]}
    found = metrics.chair(predictions, objects, references)
    assert found.chair_i == pytest.approx(3 / 6) and found.chair_s == pytest.approx(2 / 3)
    assert found.per_image[4]["hallucinated"] == ["car"]
    assert found.per_image[5] == {
        "CHAIRs": 1,
        "CHAIRi": pytest.approx(2 / 3),
        "objects": ["cats", "cat", "woman"],
        "hallucinated": ["cats", "cat"],
    }
    assert found.per_image[6]["CHAIRi"] is None
    assert found.signature == "CHAIR[words=har_jax-1,objects=objects+references]"
    alone = metrics.chair(predictions, objects)  # the lady is of the references
    assert alone.chair_i == pytest.approx(4 / 6) and alone.signature.endswith("objects=objects]")
    assert metrics.chair(["a wall"], [[]]).chair_i is None


TABLE = {p: c for p, c in coco_words._table()[0].items() if "orange" not in p}
LONGEST_FIRST = sorted((" ".join(p) for p in TABLE), key=lambda p: (-p.count(" "), p))
PATTERN = re.compile(r"(?<!\S)(?:" + "|".join(map(re.escape, LONGEST_FIRST)) + r")(?!\S)")
OTHERS = ("the", "a", "red", "on", "hot", "baby", "and", "of")
PIECES = st.sampled_from([*TABLE, *[(word,) for word in OTHERS]])


def by_regular_expression(words):
    """The leftmost longest phrases, by one alternation over the text."""
    found = [tuple(m[0].split()) for m in PATTERN.finditer(" ".join(words))]
    return [(" ".join(p), TABLE[p]) for p in found if TABLE[p]]


@given(st.lists(PIECES, max_size=8))
def test_mentions_equal_a_regular_expression(pieces):
    words = [word for piece in pieces for word in piece]
    assert coco_words.mentions(words) == by_regular_expression(words)


@given(
    st.lists(st.tuples(st.lists(PIECES, max_size=5), st.sets(st.sampled_from(list(COCO.values())))))
)
def test_the_corpus_equals_counting(rows):
    if not rows:
        return
    texts = [" ".join(word for piece in pieces for word in piece) for pieces, _ in rows]
    found = metrics.chair(texts, [there for _, there in rows])
    wrong = total = bad = 0
    for text, (_, there) in zip(texts, rows, strict=True):
        names = [set(c) for _, c in by_regular_expression(PTB(text))]
        absent = sum(not (name & there) for name in names)
        wrong, total, bad = wrong + absent, total + len(names), bad + (absent > 0)
    assert found.chair_s == bad / len(rows)
    assert found.chair_i == (wrong / total if total else None)


@pytest.fixture
def files(tmp_path):
    names = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    texts = [(1, "a man"), (1, "a guy sits"), (2, "a dog"), (2, "some dog")]
    captions = [{"id": k, "image_id": i, "caption": t} for k, (i, t) in enumerate(texts)]
    instances = {
        "images": [*names, {"id": 3, "file_name": "c.jpg"}],
        "annotations": [
            {"id": 9, "image_id": 1, "category_id": 67, "segmentation": [[1, 2.5]], "iscrowd": 0},
            {"id": 8, "image_id": 3, "category_id": 17},
        ],
        "categories": [{"id": i, "name": n, "supercategory": "x"} for i, n in COCO.items()],
    }
    results = [{"image_id": 1, "caption": "a man at a table"}, {"image_id": 2, "caption": "a cat"}]
    for name, value in (
        ("captions", {"images": names, "annotations": captions}),
        ("instances", instances),
        ("results", results),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def run(files, *more):
    given = [f"--predictions={files / 'results.json'}", f"--references={files / 'captions.json'}"]
    return evaluate.main([*given, f"--out={files / 'out'}", *more])


def test_evaluate_has_chair(files, capsys):
    assert run(files, "--metrics=CIDEr,CHAIR", f"--instances={files / 'instances.json'}") == 0
    assert "CHAIRs" in capsys.readouterr().out
    scores = json.loads((files / "out/scores.json").read_text())
    assert scores["CHAIRi"] == pytest.approx(1 / 3) and scores["CHAIRs"] == 0.5
    assert "+CHAIR[words=har_jax-1,objects=objects+references]" in scores["signature"]
    assert "CHAIRs" in scores["confidence"]["intervals"]
    rows = json.loads((files / "out/per_image.json").read_text())
    assert rows[1]["hallucinated"] == ["cat"] and rows[0]["hallucinated"] == []
    # Without the file: what the references name alone.
    assert run(files, "--metrics=CHAIR") == 0
    scores = json.loads((files / "out/scores.json").read_text())
    assert scores["CHAIRi"] == pytest.approx(2 / 3) and scores["CIDEr"] is None
    assert run(files, "--metrics=CHAIR", "--words=whitespace") == 0
    scores = json.loads((files / "out/scores.json").read_text())
    assert scores["CHAIRs"] is None and "English" in scores["skipped"]["CHAIR"]
    assert run(files, "--metrics=Chair") == 2
    assert "choose from CIDEr, Bleu, ROUGE_L, METEOR, SPICE, CHAIR" in capsys.readouterr().err


def test_bad_instances(files, capsys):
    path = files / "instances.json"
    good = json.loads(path.read_text())
    assert metrics.coco_objects(path) == {1: {"dining table"}, 2: set(), 3: {"cat"}}
    for change, told in (
        ({"images": good["images"][:1], "annotations": []}, "lacks 1 that have predictions"),
        ({"categories": [{"id": 67, "name": "dinning table"}]}, "did you mean 'dining table'"),
        ({"categories": good["categories"][:2]}, "category 67"),
        ({"images": [{"id": 1}, {"id": 2}]}, "image 3"),
        ({"annotations": "x"}, "annotations"),
    ):
        path.write_text(json.dumps(good | change))
        assert run(files, f"--instances={path}") == 2
        assert told in capsys.readouterr().err
    assert run(files, f"--instances={files / 'nothing.json'}") == 2
    with pytest.raises(UserError, match="did you mean 'person'"):
        metrics.chair(["a man"], [["persn"]])
    with pytest.raises(UserError, match="what is in the images"):
        metrics.chair(["a man"])
    with pytest.raises(UserError, match="list of texts"):
        metrics.chair(["a man"], ["person"])
