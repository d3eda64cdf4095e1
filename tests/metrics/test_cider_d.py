"""CIDEr-D against pycocoevalcap, on real and on drawn captions."""

import json
import pathlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer

from har_jax.errors import UserError
from har_jax.metrics.cider_d import CiderD, DocumentFrequency
from har_jax.metrics.corpus_cider import cider_of
from har_jax.metrics.corpus_ngrams import count_ngrams

WORD = st.sampled_from(["a", "b", "c", "dog", "on", "the"])
CAPTION = st.one_of(
    st.just([]), st.lists(WORD, max_size=12), WORD.map(lambda w: [w] * 200), WORD.map(lambda w: [w])
)
CORPUS = st.lists(
    st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=1, max_size=5
)


def corpus_cider(references, predictions):
    """(mean, {image: CIDEr}) with document frequencies of the very references."""
    counted = count_ngrams(references, predictions, metric="CIDEr")
    values = cider_of(counted).tolist()
    return np.mean(values), dict(zip(counted.image_ids, values, strict=True))


def pycoco(references, predictions):
    """The official scorer on the same words."""
    score, scores = Cider().compute_score(
        {i: [" ".join(c) for c in captions] for i, captions in references.items()},
        {i: [" ".join(predictions[i])] for i in references},
    )
    return score, scores


def pycoco_with_df(df_references, references, candidates, eos):
    """The official scorer with the document frequencies of other references; eos is a word."""
    end = [eos] if eos else []
    scorer = CiderScorer()
    for captions in df_references:
        scorer.cook_append("", [" ".join([*c, *end]) for c in captions])
    scorer.compute_doc_freq()
    n_images = len(df_references)
    scorer.crefs, scorer.ctest = [], []
    for captions, candidate in zip(references, candidates, strict=True):
        scorer.cook_append(" ".join(candidate), [" ".join([*c, *end]) for c in captions])
    # compute_cider takes the number of images from crefs: pad it to that of the df references.
    real = len(scorer.ctest)
    assert real <= n_images
    scorer.crefs += scorer.crefs[:1] * (n_images - real)
    return np.array(scorer.compute_cider()[:real])


@pytest.fixture(scope="module")
def real(real_data):
    """5,000 images: the first caption of each is the prediction, the others are references."""
    captions = json.loads((real_data / "coco_val2017_captions.json").read_text())["annotations"]
    words: dict[int, list[list[str]]] = {}
    for a in captions:
        words.setdefault(a["image_id"], []).append(a["caption"].lower().replace(".", " ").split())
    return {i: c[1:] for i, c in words.items()}, {i: c[0] for i, c in words.items()}


def test_real_captions(real):
    references, predictions = real
    score, per_image = corpus_cider(references, predictions)
    expected, expected_per_image = pycoco(references, predictions)
    assert score == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose([per_image[i] for i in references], expected_per_image, atol=1e-9)
    assert 0.5 < score < 1.2  # people against people


@given(CORPUS)
def test_drawn_captions(corpus):
    references = {i: captions for i, (_, captions) in enumerate(corpus)}
    predictions = {i: candidate for i, (candidate, _) in enumerate(corpus)}
    if not any(captions != [[]] * len(captions) for captions in references.values()):
        return  # pycocoevalcap fails on max() of no n-grams
    score, per_image = corpus_cider(references, predictions)
    expected, expected_per_image = pycoco(references, predictions)
    assert score == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(list(per_image.values()), expected_per_image, atol=1e-9)


@given(CORPUS, st.lists(st.lists(CAPTION, min_size=1, max_size=3), min_size=5, max_size=8))
@pytest.mark.parametrize("eos", [False, True])
def test_other_document_frequencies_with_and_without_eos(eos, corpus, train):
    df = DocumentFrequency.from_references(train)
    references = [captions for _, captions in corpus]
    scorer = CiderD(df, dict(enumerate(references)), eos=eos)
    ended = np.arange(2 * len(corpus)).reshape(-1, 2) % 3 != 0
    twice = [[candidate, candidate] for candidate, _ in corpus]
    got = scorer.score(range(len(corpus)), twice, ended)
    for column in range(2):
        candidates = [
            [*candidate, "<eos>"] if eos and ended[i, column] else candidate
            for i, (candidate, _) in enumerate(corpus)
        ]
        expected = pycoco_with_df(train, references, candidates, "<eos>" if eos else "")
        np.testing.assert_allclose(got[:, column], expected, atol=1e-9)


def test_anchors():
    references = {1: [["a", "dog", "runs", "fast"]], 2: [["two", "cats", "sleep", "here"]]}
    score, _ = corpus_cider(references, {1: references[1][0], 2: []})
    assert score == pytest.approx(
        5.0
    )  # a caption equal to its only reference has 10, an empty one 0
    one_image, _ = corpus_cider({1: references[1]}, {1: references[1][0]})
    assert one_image == 0.0  # ln N = 0


def test_unknown_words_count_in_the_norm():
    train = [[["a", "b"]], [["c", "d"]]]
    df = DocumentFrequency.from_references(train)
    scorer = CiderD(df, {7: [["a", "b"]]}, eos=False)
    got = scorer.score([7], [[["a", "b", "x", "y", "x", "y"], ["a", "b", "x", "y", "z", "y"]]])
    expected = [
        pycoco_with_df(train, [[["a", "b"]]], [c], "")[0]
        for c in (["a", "b", "x", "y", "x", "y"], ["a", "b", "x", "y", "z", "y"])
    ]
    np.testing.assert_allclose(got[0], expected, atol=1e-12)
    assert got[0, 0] != got[0, 1]


def test_document_frequency_counts_images_not_captions():
    df = DocumentFrequency.from_references(
        [[["a", "dog"], ["a", "dog", "a", "dog"]], [["a", "cat"]], [[]]], name="train"
    )
    assert df.n_images == 3
    assert [df.get(g.split()) for g in ("a", "a dog", "dog", "a cat", "dog a", "cat dog", "x")] == [
        *(2, 1, 1, 1, 1, 0, 0)
    ]
    assert df.get(()) == 0
    assert df.get(["a"] * 5) == 0


def test_document_frequency_file(tmp_path):
    references = [[["a", "dog"], ["the", "dog"]], [["a", "caf\u00e9"]]]
    df = DocumentFrequency.from_references(references, name="train")
    path = tmp_path / "new" / "df.npz"
    df.save(path)
    again = DocumentFrequency.load(path)
    assert (again.fingerprint, again.n_images, again.name) == (df.fingerprint, 2, "train")
    assert again.get(["a", "caf\u00e9"]) == 1
    assert [p.name for p in path.parent.iterdir()] == ["df.npz"]
    shuffled = DocumentFrequency.from_references([references[1], references[0][::-1]])
    assert shuffled.fingerprint == df.fingerprint
    other = DocumentFrequency.from_references([*references, [["a"]]])
    assert other.fingerprint != df.fingerprint


def test_bad_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no document frequencies at"):
        DocumentFrequency.load(tmp_path / "absent.npz")
    broken: pathlib.Path = tmp_path / "broken.npz"
    broken.write_bytes(b"not a zip file")
    with pytest.raises(UserError, match="not a document-frequency file"):
        DocumentFrequency.load(broken)
    np.savez(broken, a=1)
    with pytest.raises(UserError, match="not a document-frequency file"):
        DocumentFrequency.load(broken)


def test_bad_input_is_a_user_error():
    df = DocumentFrequency.from_references([[["a"]]])
    with pytest.raises(UserError, match="at least one image"):
        DocumentFrequency.from_references([])
    with pytest.raises(UserError, match="image 3 has no references"):
        CiderD(df, {3: []}, eos=True)
    with pytest.raises(UserError, match="at least one image"):
        CiderD(df, {}, eos=True)
    scorer = CiderD(df, {3: [["a"]]}, eos=True)
    with pytest.raises(UserError, match="no references for image 4"):
        scorer.score([4], [[["a"]]])
    with pytest.raises(UserError, match="has 2 captions, the first image has 1"):
        scorer.score([3, 3], [[["a"]], [["a"], ["a"]]])
    with pytest.raises(UserError, match="2 image ids"):
        scorer.score([3, 3], [[["a"]]])
    with pytest.raises(UserError, match="no references for image 9"):
        corpus_cider({1: [["a"]]}, {9: ["a"]})


def test_empty_batch():
    df = DocumentFrequency.from_references([[["a"]]])
    assert CiderD(df, {3: [["a"]]}, eos=True).score([], []).shape == (0, 0)


def test_threads_agree(real):
    references, predictions = real
    ids = list(references)[:500]
    df = DocumentFrequency.from_references(references.values())
    scorer = CiderD(df, references, eos=True)
    captions = [[predictions[i], [*predictions[i], "unheard-of"]] for i in ids]
    expected = scorer.score(ids, captions)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(scorer.score(ids, captions)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, expected)
