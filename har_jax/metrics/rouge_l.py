"""ROUGE-L with beta 1.2, as pycocoevalcap computes it (Lin & Hovy; pycocoevalcap/rouge/rouge.py).

Per image: the best precision and the best recall over the references (they may come from different
references), combined with recall weighted by beta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from har_jax.errors import UserError
from har_jax.metrics.word_lists import Words, refuse_text, refuse_texts

_BETA = 1.2


def corpus_rouge(
    references: Mapping[int, Sequence[Words]], predictions: Mapping[int, Words]
) -> tuple[float, dict[int, float]]:
    """Returns (mean ROUGE-L, {image id: ROUGE-L}), values in [0, 1].

    Raises:
      UserError: an image without references, nothing to score, or a text instead of words.
    """
    if not predictions:
        raise UserError("ROUGE-L needs at least one prediction, got none")
    per_image = {}
    for image_id, words in predictions.items():
        captions = references.get(image_id)
        if not captions:
            raise UserError(f"no references for image {image_id}; ROUGE-L needs at least one")
        refuse_text(words)
        refuse_texts(captions)
        per_image[image_id] = _rouge_l(words, captions)
    return sum(per_image.values()) / len(per_image), per_image


def _rouge_l(words: Words, captions: Sequence[Words]) -> float:
    # An empty caption counts as one empty word there, so two empty captions agree fully.
    words = words or ("",)
    where: dict[str, int] = {}  # the places of each word, as bits
    for i, word in enumerate(words):
        where[word] = where.get(word, 0) | (1 << i)
    precision = recall = 0.0
    for reference in captions:
        reference = reference or ("",)
        common = _common(reference, where, len(words))
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(a: Words, where: Mapping[str, int], size: int) -> int:
    """Length of the longest common subsequence of `a` and `size` words that stand `where`:
    bit-parallel, one big-integer step per word.

    Zeros of `row` mark where the LCS of the other's prefixes grows (Hyyrö, 2004).
    """
    full = (1 << size) - 1
    row = full
    for word in a:
        if word in where:  # without a match the step changes nothing
            matches = row & where[word]
            row = ((row + matches) | (row - matches)) & full
    return size - row.bit_count()
