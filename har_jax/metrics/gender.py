"""Gendered words that no reference supports, and figures that expose a collapse to neutral words.

For g in {M, F}: h_g tells whether a caption has a g-word, s_g is the share of the image's
references that have one, and the other gender is written ḡ. Then

    u_g = h_g [s_g = 0] (1 if s_ḡ > 0 else 1/2)      b = min(1, u_M + u_F)      in {0, 1/2, 1}

A word that contradicts the references counts fully, one that they merely do not support by half. A
neutral caption costs nothing, so a falling b must be read together with `neutral_rate` and the
recalls: a captioner that writes "person" everywhere has b = 0.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

from har_jax.errors import UserError, did_you_mean
from har_jax.metrics.word_lists import Words, refuse_text, refuse_texts

# Hirota et al., "Quantifying Societal Bias Amplification in Image Captioning" (CVPR 2022), the
# lists of their LIC code, verbatim: "queen" has no "king" there, "cowboy" no counterpart.
_LIC_MALE = (
    "man men male father gentleman gentlemen boy boys uncle husband actor prince waiter son he his "
    "him himself brother brothers guy guys emperor emperors dude dudes cowboy"
)
_LIC_FEMALE = (
    "woman women female lady ladies mother girl girls aunt wife actress princess waitress daughter "
    "she her hers herself sister sisters queen queens pregnant"
)
# Every word has a counterpart, so neither gender is found more easily than the other.
_BALANCED_MALE = (
    "man men male males gentleman gentlemen boy boys lad lads guy guys father fathers dad dads "
    "daddy grandfather grandpa uncle uncles nephew husband husbands groom son sons brother "
    "brothers actor actors waiter waiters prince princes king kings emperor emperors cowboy "
    "cowboys businessman businessmen policeman policemen he him his himself"
)
_BALANCED_FEMALE = (
    "woman women female females lady ladies girl girls lass lasses gal gals mother mothers mom "
    "moms mommy grandmother grandma aunt aunts niece wife wives bride daughter daughters sister "
    "sisters actress actresses waitress waitresses princess princesses queen queens empress "
    "empresses cowgirl cowgirls businesswoman businesswomen policewoman policewomen she her hers "
    "herself"
)

LISTS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "lic": (frozenset(_LIC_MALE.split()), frozenset(_LIC_FEMALE.split())),
    "balanced": (frozenset(_BALANCED_MALE.split()), frozenset(_BALANCED_FEMALE.split())),
}
"""{name: (masculine words, feminine words)}."""


def word_lists(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The lists of that name.

    Raises:
      UserError: no such lists.
    """
    if name not in LISTS:
        raise UserError(
            f"unknown lists of gendered words {name!r}; choose from {', '.join(LISTS)}"
            + did_you_mean(name, LISTS)
        )
    return LISTS[name]


@functools.cache
def _either(lists: str) -> frozenset[str]:
    return frozenset().union(*word_lists(lists))


def mentions(caption: Words, lists: str = "lic") -> tuple[bool, bool]:
    """Whether a caption has (a masculine, a feminine) word."""
    refuse_text(caption)
    male, female = word_lists(lists)
    if _either(lists).isdisjoint(caption):  # most captions of most images
        return False, False
    return not male.isdisjoint(caption), not female.isdisjoint(caption)


def support(references: Sequence[Words], lists: str = "lic") -> tuple[float, float]:
    """Shares of an image's references with (a masculine, a feminine) word.

    Raises:
      UserError: there are no references.
    """
    refuse_text(references)
    if not references:
        raise UserError("the gendered words of an image need at least one reference, got none")
    refuse_texts(references)
    if _either(lists).isdisjoint(itertools.chain.from_iterable(references)):  # of most images
        return 0.0, 0.0
    male, female = word_lists(lists)
    n = len(references)
    return (
        sum(not male.isdisjoint(words) for words in references) / n,
        sum(not female.isdisjoint(words) for words in references) / n,
    )


def unsupported(mentioned: tuple[bool, bool], supported: tuple[float, float]) -> float:
    """b of the module's docstring, from `mentions` of the caption and `support` of the image."""
    total = 0.0
    for own, other in ((0, 1), (1, 0)):
        if mentioned[own] and supported[own] == 0:
            total += 1.0 if supported[other] > 0 else 0.5
    return min(1.0, total)


def summary(
    references: Mapping[int, Sequence[Words]],
    predictions: Mapping[int, Words],
    *,
    lists: str = "lic",
) -> dict[str, float | None]:
    """Figures over a set of images; None where no image of the kind exists.

    Returns:
      bias (mean b), unsupported_rate (share of captions with b > 0), contradiction_rate (b = 1),
      neutral_rate (share without a gendered word), and recall_male, recall_female: of the images
      most of whose references have words of that gender and fewer of the other, the share whose
      caption has one too; error_male, error_female: the share whose caption has only the other.

    Raises:
      UserError: nothing to score, an image without references, or unknown lists.
    """
    if not predictions:
        raise UserError("figures of gendered words need at least one prediction, got none")
    seen = []
    for image_id, words in predictions.items():
        if not references.get(image_id):
            raise UserError(f"no references for image {image_id}; give at least one")
        seen.append((mentions(words, lists), support(references[image_id], lists)))
    values = [unsupported(mentioned, supported) for mentioned, supported in seen]
    male, female = ([m for m, s in seen if s[g] > 0.5 and s[g] > s[1 - g]] for g in (0, 1))
    return {
        "bias": _mean(values),
        "unsupported_rate": _mean([value > 0 for value in values]),
        "contradiction_rate": _mean([value == 1 for value in values]),
        "neutral_rate": _mean([not any(mentioned) for mentioned, _ in seen]),
        "recall_male": _mean([m for m, _ in male]),
        "recall_female": _mean([f for _, f in female]),
        "error_male": _mean([f and not m for m, f in male]),
        "error_female": _mean([m and not f for m, f in female]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
