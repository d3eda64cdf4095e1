"""The metrics as functions of plain texts: what `har_jax.metrics` offers.

    from har_jax.metrics import bleu, cider, rouge, score_captions

    cider(["a dog runs", ...], [["a dog is running", "the dog runs"], ...])
    score_captions({17: "a dog runs", ...}, {17: ["a dog is running"], ...})["Bleu_4"]

Predictions come first, as a list of texts or as {id: text}; references are the same with a list of
texts for each text. Values are those of `python -m har_jax.evaluate`, which are pycocoevalcap's.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

from har_jax.errors import UserError
from har_jax.ids import NoId, read_id
from har_jax.metrics import corpus
from har_jax.metrics.corpus import DEFAULT_METRICS
from har_jax.text.words import PTB, Words, find_words

Predictions = Sequence[str] | Mapping[Any, str]
References = Sequence[Sequence[str]] | Mapping[Any, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was found; `scores["CIDEr"]` is the corpus value of a metric.

    Attributes:
      corpus: {metric: value}, of the metrics that ran.
      per_image: {id: {metric: value}}, in the order of the predictions; of lists, by place.
      skipped: {metric: why it could not run}.
      signature: what has to agree for two values to be comparable.
    """

    corpus: dict[str, float]
    per_image: dict[Hashable, dict[str, float]] = dataclasses.field(repr=False)
    skipped: dict[str, str]
    signature: str

    def __getitem__(self, metric: str) -> float:
        return self.corpus[metric]


def score_captions(
    predictions: Predictions,
    references: References,
    metrics: Collection[str] = DEFAULT_METRICS,
    words: str | Words = PTB,
) -> Scores:
    """Scores one caption per image.

    CIDEr's document frequencies are those of `references`, so a score of some of the images is
    another one than their part of the score of all.

    Args:
      metrics: some of CIDEr, Bleu, ROUGE_L, METEOR and SPICE. The last two start Java, and are
        among `skipped` where they cannot run.
      words: what is counted: "ptb", "whitespace", "icu" or "package.module:function".

    Raises:
      UserError: predictions and references do not belong together, one text stands for a list of
        texts, words stand for a text, or an unknown metric or name of words.
    """
    own, truth, images = numbered(predictions, references)
    if isinstance(metrics, str):
        raise UserError(f"metrics={metrics!r} is a text; give a list, [{metrics!r}]")
    counted = find_words(words) if isinstance(words, str) else words
    found = corpus.score_captions(truth, own, metrics=metrics, words=counted)
    return Scores(
        {key: value for key, value in found.corpus.items() if value is not None},
        {images[i]: found.per_image[i] for i in own},
        {name: why for name, why in found.skipped.items() if name in metrics},
        found.signature,
    )


def cider(predictions: Predictions, references: References, words: str | Words = PTB) -> float:
    """CIDEr-D in [0, 10], which papers print times 100; see `score_captions`. 0 of a single image,
    all of whose n-grams occur in every image."""
    return score_captions(predictions, references, ["CIDEr"], words)["CIDEr"]


def bleu(
    predictions: Predictions, references: References, n: int = 4, words: str | Words = PTB
) -> float:
    """Corpus BLEU-n in [0, 1], of 1..n-grams; see `score_captions`.

    Raises:
      UserError: `n` is not 1, 2, 3 or 4, and what `score_captions` raises.
    """
    if n not in (1, 2, 3, 4):
        raise UserError(f"bleu(n={n!r:.40}): n is 1, 2, 3 or 4, the longest n-gram")
    return score_captions(predictions, references, ["Bleu"], words)[f"Bleu_{n}"]


def rouge(predictions: Predictions, references: References, words: str | Words = PTB) -> float:
    """ROUGE-L in [0, 1], with beta 1.2; see `score_captions`."""
    return score_captions(predictions, references, ["ROUGE_L"], words)["ROUGE_L"]


def numbered(
    predictions: Predictions, references: References
) -> tuple[dict[int, str], dict[int, list[str]], list[Any]]:
    """Texts by the place of the image among the predictions.

    Returns:
      (predictions, references, the id of each image as the predictions have it).

    Raises:
      UserError: see `score_captions`.
    """
    (texts, truth), images = aligned(predictions=predictions, references=references)
    own = {i: text_of(image, texts[i]) for i, image in enumerate(images)}
    return own, {i: texts_of(image, truth[i]) for i, image in enumerate(images)}, images


def aligned(**given: Any) -> tuple[list[list[Any]], list[Any]]:
    """Collections of one entry per image, in the order of the first.

    Args:
      given: by name, for errors; all of them lists of one order, or all {id: entry} of the same
        images, where 12 and "12" are one id (`har_jax.ids`).

    Returns:
      ([entries of each], the id of each image as the first has it; of lists, its place).

    Raises:
      UserError: they are not such collections.
    """
    (first, leading), *others = given.items()
    for name, values in given.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sequence | Mapping):
            raise UserError(
                f"the {name} are {reprlib.repr(values)}; give a list with one entry per image, or "
                "{id: entry}"
            )
        if not values:
            raise UserError(f"the {name} are empty; give at least one image's")
        if isinstance(values, Mapping) != isinstance(leading, Mapping):
            raise UserError(
                f"the {first} are a {type(leading).__name__} and the {name} a "
                f"{type(values).__name__}; give lists of one order, or {{id: entry}} of both"
            )
    if not isinstance(leading, Mapping):
        for name, values in others:
            if len(values) != len(leading):
                raise UserError(
                    f"there are {len(leading)} {first} and {len(values)} {name}; give one entry "
                    "per image, in one order"
                )
        return [list(values) for values in given.values()], list(range(len(leading)))
    by_id = {name: _by_id(name, values) for name, values in given.items()}
    ids = by_id[first]
    for name, _ in others:
        for one, other in ((first, name), (name, first)):
            alone = [image for image in by_id[one] if image not in by_id[other]]
            if alone:
                raise UserError(
                    f"{len(alone)} of {len(by_id[one])} images of the {one}, such as "
                    f"{reprlib.repr(alone[0])}, have no {other}; give both of the same images"
                )
    return [[by_id[name][i] for i in ids] for name in given], list(leading)


def _by_id(name: str, values: Mapping[Any, Any]) -> dict[Any, Any]:
    found = {}
    for image, value in values.items():
        try:
            key = read_id(image)
        except NoId as error:
            raise UserError(f"the {name} have an image whose id is none: {error}") from None
        if key in found:
            raise UserError(
                f"the {name} have the image {key!r:.60} twice (12 and '12' are one id); leave one "
                "of them out"
            )
        found[key] = value
    return found


def text_of(image: Any, text: Any) -> str:
    """A prediction, or `UserError`."""
    if isinstance(text, str):
        return text
    if isinstance(text, Sequence) and text and all(isinstance(part, str) for part in text):
        raise UserError(
            f"the prediction of image {image!r:.60} is the list {reprlib.repr(list(text))}; give "
            "one text per image, and predictions before references"
        )
    raise UserError(f"the prediction of image {image!r:.60} is {reprlib.repr(text)}, not a text")


def texts_of(image: Any, texts: Any) -> list[str]:
    """The references of an image, or `UserError`."""
    if isinstance(texts, str):
        raise UserError(
            f"the references of image {image!r:.60} are the text {reprlib.repr(texts)}, each of "
            "whose letters would be a reference; give a list, [text] for a single one"
        )
    found = list(texts) if hasattr(texts, "__iter__") else []
    if not found or not all(isinstance(text, str) for text in found):
        raise UserError(
            f"the references of image {image!r:.60} are {reprlib.repr(texts)}; give a list of at "
            "least one text"
        )
    return found
