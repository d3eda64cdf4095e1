"""What a captioner takes and gives in Python: images in any way, captions with their scores, and
the log-probability of given texts."""

import io
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from har_jax.errors import UserError
from har_jax.loading import programs
from har_jax.models.functional import split
from tests.helpers import jitted, long

FEW = {"max_tokens": 6, "batch_size": 4}
TEXTS = ["a red star", "a red star above a blue moon", ""]


@pytest.fixture(scope="module", params=[(1, 1, 1), *long([(2, 2, 2)])], ids=str)
def captioner(request, captioner_on):
    return captioner_on(*request.param)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """uint8 [H,W,3]: of one size, which is not the model's."""
    return list(np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), np.uint8))


@pytest.fixture(scope="module")
def written(captioner, pictures) -> list[str]:
    return captioner.generate([Image.fromarray(x) for x in pictures], **FEW)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_in_every_way(captioner, pictures, written, tmp_path):
    assert len(set(written)) > 1
    paths = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(png(picture))
    pixels = captioner.preprocess(pictures)
    features = captioner.features(pictures)
    assert features.dtype == np.float32
    assert features.shape[1:] == captioner.blueprint.config.features_shape
    for given in (
        paths,
        tuple(map(str, paths)),
        np.array(list(map(str, paths))),
        iter(map(png, pictures)),
        pictures,
        np.stack(pictures),
        jnp.asarray(np.stack(pictures)),
        (Image.fromarray(x) for x in pictures),
        pixels,
        list(pixels),
        features,
        iter(features),
    ):
        assert captioner.generate(given, **FEW) == written
    for single in (str(paths[1]), paths[1], png(pictures[1]), pictures[1]):
        assert captioner.generate(single, **FEW) == written[1]
    assert captioner.generate([pictures[1]], **FEW) == [written[1]]
    assert captioner.generate([]) == [] and captioner.features([]).shape[0] == 0
    np.testing.assert_allclose(captioner.features(pictures[1])[0], features[1], atol=1e-5)


@pytest.mark.usefixtures("untyped")
def test_bytes_of_the_models_size_are_an_image(captioner):
    """And not pixels that are normalised already."""
    side = captioner.preprocessor.crop_size[0]
    picture = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    wanted = captioner.preprocessor(Image.fromarray(picture))
    np.testing.assert_array_equal(captioner.preprocess(picture), wanted[None])
    tokens, _ = captioner.generate_tokens(picture[None], max_tokens=6)
    np.testing.assert_array_equal(tokens, captioner.generate_tokens(wanted[None], max_tokens=6)[0])
    with pytest.raises(UserError, match="pixels of dtype uint8"):  # in a program of one's own
        captioner.caption_fn(max_tokens=2)(captioner.params, jnp.asarray(picture[None]), None)


def test_an_endless_stream(captioner, pictures, written):
    taken = 0

    def frames():
        nonlocal taken
        for picture in itertools.cycle(pictures):
            taken += 1
            yield picture

    stream = captioner.captions(frames(), **FEW)
    assert taken == 0
    for i, (caption,) in enumerate(itertools.islice(stream, 10)):
        assert caption.text == written[i % 4] and taken <= i + 4


BAD = {
    "nothing": (lambda p: None, "None is no images; give a path, encoded bytes"),
    "a number": (lambda p: 3, "3 is no images"),
    "a dictionary": (lambda p: {"a.jpg": 1}, "of type builtins.dict is no images"),
    "a set": (lambda p: {"a.jpg"}, "of type builtins.set is no images"),
    "gray": (lambda p: p[0][..., 0], r"an array of uint8 \[40,56\] is no images"),
    "four channels": (lambda p: np.zeros((2, 4, 4, 4), np.uint8), r"image \[0\] .*\[H,W,3\]"),
    "integers": (lambda p: np.zeros((2, 4, 4, 3), int), "uint8, one of preprocessed pixels"),
    "floats": (lambda p: np.stack(p) / 255, r"image \[0\] .*float64 \[40,56,3\]; of floats this"),
    "one of floats": (lambda p: p[0] / 255, r"float64 \[56,3\]; of floats this captioner reads"),
    "an odd one": (lambda p: [p[0], 7], r"image \[1\] of those given is 7; give a path"),
    "a broken one": (lambda p: [p[0], b"no image"], r"image \[1\] of those given "),
    "two ways": (lambda p: [p[0], np.zeros((1, 1))], r"image \[1\] .*float64 \[1,1\]; of floats"),
    "no file": (lambda p: "absent.jpg", "image absent.jpg cannot be read"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_image(captioner, pictures, what):
    make, line = BAD[what]
    with pytest.raises(UserError, match=line):
        captioner.generate(make(pictures), **FEW)


def test_pixels_beside_features(captioner, pictures):
    features = captioner.features(pictures[:1])
    with pytest.raises(UserError, match=r"image \[1\] is given as features .* the first as pixels"):
        captioner.generate([pictures[0], features[0]])


SETTINGS = {
    "num_return": ({"num_return": 2}, "num_return is 2, but method='greedy' writes at most 1"),
    "beams": ({"method": "beam", "beams": 2, "num_return": 3}, "writes at most 2 .*; raise beams"),
    "kind": ({"method": "beam", "beams": "3"}, "beams is '3'; it must be a whole number"),
    "penalty": ({"length_penalty": float("nan")}, "length_penalty is nan; it must be"),
    "stopping": ({"early_stopping": "no"}, "early_stopping is 'no'; it must be False, True or"),
    "name": ({"beam": 3}, "no setting 'beam' of captions .did you mean 'beams'"),
    "tokens": ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
    "batch": ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    "word": ({"batch_size": "a"}, "batch_size is 'a'; it must be a whole number"),
    "top_k": ({"method": "sample", "top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
    "top_p": ({"method": "sample", "top_p": "0.9"}, "top_p is '0.9'; it must be a number"),
    "top_p of none": ({"method": "sample", "top_p": 0}, "top_p is 0; it must be above 0"),
}


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.usefixtures("untyped")
def test_what_is_no_setting(captioner, pictures, what):
    settings, line = SETTINGS[what]
    with pytest.raises(UserError, match=line):
        captioner.generate(pictures, **settings)


def test_captions_with_their_scores(captioner, pictures):
    """Of beams and of samples; `score` finds the same log-probabilities."""
    how = {"method": "beam", "beams": 4, "num_return": 3, "length_penalty": 0.5, **FEW}
    found = captioner.generate(pictures, return_scores=True, **how)
    assert captioner.generate(pictures, **how) == [[c.text for c in row] for row in found]
    for row in found:
        assert len({caption.tokens for caption in row}) == 3
        assert [c.score for c in row] == sorted((c.score for c in row), reverse=True)
        for caption in row:
            assert len(caption.logp) == len(caption.tokens) <= 6
            assert caption.ended == (caption.tokens[-1] == captioner.tokenizer.eos_id)
            assert caption.score == pytest.approx(sum(caption.logp) / len(caption.tokens) ** 0.5)
    how = {"method": "sample", "num_return": 3, "seed": 2, **FEW}
    (drawn,) = captioner.captions(pictures[0], **how)
    assert len({caption.tokens for caption in drawn}) == 3
    assert [c.text for c in drawn] == captioner.generate(pictures[0], **how)
    # The cut ones have no EOS, which a text that is scored always has.
    pairs = [(b, c) for b, row in enumerate(found) for c in row if c.ended]
    for b, caption in pairs:
        if captioner.tokenizer.encode(caption.text) == list(caption.tokens):
            logp = captioner.score(pictures[b], caption.text, max_tokens=6)
            assert logp[0, 0] == pytest.approx(sum(caption.logp), abs=1e-3)


def test_scores_of_given_texts(captioner, pictures, monkeypatch):
    """Against a text alone, without padding; in blocks; per image and for all."""
    scores = captioner.score(iter(pictures), TEXTS, batch_size=4)
    assert scores.shape == (4, 3) and scores.dtype == np.float32
    ids = captioner.tokenizer.encode(TEXTS[0])
    tokens = jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (4, 1, len(ids)))
    pixels = jnp.asarray(captioner.preprocess(pictures))

    def logits(model):
        return model.logits(model.prefill(model.project(model.encode(pixels))), tokens)

    model = captioner.structure.merge(captioner.params)
    assert split(model)[1].keys() == captioner.params.keys()
    rows = np.asarray(jitted(model, logits), np.float64)[:, 0]
    rows -= np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True)) + rows.max(
        -1, keepdims=True
    )
    alone = rows[:, np.arange(len(ids)), ids].sum(-1)
    np.testing.assert_allclose(scores[:, 0], alone, rtol=1e-4)
    own = captioner.score(pictures, [[TEXTS[b % 3]] for b in range(4)], batch_size=4)
    np.testing.assert_allclose(own[:, 0], scores[np.arange(4), np.arange(4) % 3], rtol=1e-4)
    monkeypatch.setattr(programs, "TEXTS", 2)
    blocks = captioner.score(pictures, TEXTS, batch_size=4)
    np.testing.assert_allclose(blocks, scores, rtol=1e-4)
    assert captioner.score([], TEXTS).shape == (0, 3)


def test_texts_to_tokens_and_back(captioner):
    tokens, lengths = captioner.encode_texts(TEXTS, max_tokens=20)
    assert tokens.shape == (3, 20) and lengths.tolist() == [
        len(captioner.tokenizer.encode(text)) for text in TEXTS
    ]
    assert captioner.decode_texts(tokens, lengths) == TEXTS
    both = captioner.encode_texts([TEXTS[:2], TEXTS[1:]], max_tokens=20)
    assert both[0].shape == (2, 2, 20) and both[1].shape == (2, 2)
    assert captioner.decode_texts(*both) == [TEXTS[:2], TEXTS[1:]]


BAD_TEXTS = {
    "too long": ("a red star " * 90, "tokens with EOS, but at most .* are allowed; shorten it, or"),
    "counts": ([["a"], ["b"]], "texts has lists for 2 images, but 4 are given"),
    "uneven": ([["a"], ["b", "c"], ["d"], ["e"]], r"texts\[1\] has 2 texts, texts\[0\] has 1"),
    "mixed": (["a", ["b"]], "texts has both texts and lists of texts"),
    "none": ([], "texts is empty"),
    "no text": ([["a"], [3], ["b"], ["c"]], r"texts\[1\]\[0\] is 3 of type int; it must be"),
    "a number": (3, "texts is 3 of type int; give a text, a list of texts"),
}


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_what_is_no_text(captioner, pictures, what):
    texts, line = BAD_TEXTS[what]
    with pytest.raises(UserError, match=line):
        captioner.score(pictures, texts)


def test_a_stream_with_fewer_texts_than_images(captioner, pictures):
    for n, line in ((3, "lists for 3 images, but 4 or more"), (5, "lists for 5 images, but 4 are")):
        with pytest.raises(UserError, match=line):
            captioner.score(iter(pictures), [TEXTS] * n, batch_size=4)


def test_its_repr_is_a_line(captioner):
    shown = repr(captioner)
    assert len(shown) < 200 and "\n" not in shown
    assert f"data={captioner.mesh.shape['data']} x fsdp=" in shown
    assert f"{sum(x.size for x in captioner.params.values()):,} parameters" in shown
