"""Systems that were made several times: what their scores are, and whether two of them differ.

A score moves for two reasons: other images could have been drawn, and another seed would have made
another captioner (or other samples). Let D be the difference of two systems' means over S seeds.

* `images`: the paired bootstrap of `evaluation.bootstrap` over D, the seeds as they are. Each
  resample draws images once, for all seeds of both systems, and D is computed anew from it. It
  says whether these very captioners differ.
* `seeds`: Student's t over the seeds, the images as they are. Paired by seed where one system was
  made from the other's run of that seed (SCST from MLE); otherwise Welch's, since the number of a
  seed then links nothing. A deterministic system has no spread over seeds and adds none. It says
  whether the methods differ on these images.
* `both`, which the tables print: the variance of the one plus that of the other. With the effects
  of seeds and images crossed, Var D = σ²_seeds/S + σ²_images/I + σ²_rest/(S·I), and the two
  variances above hold the first and the second term, and each the third: it is counted twice, so
  the interval is a little too wide, never too narrow for it. The bootstrap's variance comes from
  many images, that of the seeds from S - 1 degrees of freedom; their sum has those of Satterthwaite
  (1946). Little is known of a spread that few seeds show, and `seeds` pays for that by its t: where
  the images' share is large, `both` may be the narrower of the two. A bootstrap over five seeds
  would be too narrow, for it underestimates their spread in most draws.

p-values are two-sided and are not corrected for how many comparisons a table makes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from har_jax.errors import UserError
from har_jax.evaluation.bootstrap import LEVEL, RESAMPLES, Statistics, interval, resample

_MANY = 1e6  # degrees of freedom from which Student's t is the normal distribution


@dataclasses.dataclass(frozen=True)
class Scored:
    """A system's scores.

    Attributes:
      values: {metric: its corpus value for each seed}, of every metric that all seeds have.
      statistics: of the images, for each seed, in one order of the images for all systems.
      deterministic: whether another seed would have changed nothing; then there is one.
    """

    values: Mapping[str, Sequence[float]]
    statistics: Sequence[Statistics]
    deterministic: bool = False

    @property
    def n(self) -> int:
        return len(self.statistics)


@dataclasses.dataclass(frozen=True)
class Spread:
    """The variance of a mean, or of a difference of two, and its degrees of freedom."""

    variance: float
    df: float

    def __add__(self, other: Spread) -> Spread:
        variance = self.variance + other.variance
        parts = sum(s.variance**2 / s.df for s in (self, other))
        return Spread(variance, variance**2 / parts if parts > 0 else math.inf)

    def around(self, value: float, level: float = LEVEL) -> dict[str, Any]:
        """{"interval", "p"}: of Student's t; p against a true value of 0."""
        df = min(self.df, _MANY)
        error = math.sqrt(self.variance)
        if error < 1e-12:  # sums in another order differ in the last bits
            return {"interval": [value, value], "p": 1.0 if abs(value) < 1e-12 else 0.0}
        half = float(stdtrit(df, (1 + level) / 2)) * error
        p = 2 * float(stdtr(df, -abs(value) / error))
        return {"interval": [value - half, value + half], "p": p}


def spread_over_seeds(values: Sequence[float], *, deterministic: bool) -> Spread | None:
    """Of the mean of a system's values; None where one seed tells nothing of others."""
    if deterministic:
        return Spread(0.0, math.inf)
    n = len(values)
    return Spread(float(np.var(values, ddof=1)) / n, n - 1) if n > 1 else None


def spread_of_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    linked: bool,
    deterministic: tuple[bool, bool] = (False, False),
) -> Spread | None:
    """Of the difference of two means; None where a system that varies was made once.

    Args:
      linked: whether values of the same place belong together, as SCST's and its MLE run's do.
      deterministic: of each system, see `Scored`.

    Raises:
      UserError: linked systems with different numbers of seeds.
    """
    if linked:
        if len(ours) != len(theirs):
            raise UserError(
                f"systems of {len(ours)} and {len(theirs)} seeds cannot be paired; make both of "
                "the same seeds"
            )
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        return spread_over_seeds(differences, deterministic=all(deterministic))
    a = spread_over_seeds(ours, deterministic=deterministic[0])
    b = spread_over_seeds(theirs, deterministic=deterministic[1])
    return None if a is None or b is None else a + b


def summarise(
    system: Scored, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """{metric: {"values", "mean", "std", "interval"}}.

    `std` is the sample standard deviation over the seeds: None of one seed, and of a deterministic
    system. `interval` is that of the mean, over images and seeds as far as each is known; None
    where neither is.
    """
    drawn = _drawn([system], seed, resamples)[0] if _images(system) > 1 else {}
    found = {}
    for name, values in system.values.items():
        mean = float(np.mean(values))
        over_seeds = spread_over_seeds(values, deterministic=system.deterministic)
        by_images = _spread(drawn.get(name))
        spread = _sum(by_images, None if system.deterministic and not by_images else over_seeds)
        found[name] = {
            "values": list(values),
            "mean": mean,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "interval": spread.around(mean)["interval"] if spread else None,
        }
    return found


def contrast(
    ours: Scored, theirs: Scored, *, linked: bool, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """`ours - theirs` of every metric that both have; see the module's docstring.

    Returns:
      {metric: {"difference", "images", "seeds", "both", "basis"}}. The middle three are
      {"interval", "p"}, or None where that cannot be told: METEOR's corpus value is not made of
      images' values, and one seed says nothing of others. `basis` says what `both` has in it.

    Raises:
      UserError: the systems were not scored on the same images, or cannot be paired.
    """
    drawn = _drawn([ours, theirs], seed, resamples) if _images(ours) > 1 else [{}, {}]
    found = {}
    for name in ours.values:
        if name not in theirs.values:
            continue
        a, b = ours.values[name], theirs.values[name]
        difference = float(np.mean(a)) - float(np.mean(b))
        over_seeds = spread_of_difference(
            a, b, linked=linked, deterministic=(ours.deterministic, theirs.deterministic)
        )
        if ours.deterministic and theirs.deterministic:
            over_seeds = None  # there is no other seed
        values = drawn[0][name] - drawn[1][name] if name in drawn[0] and name in drawn[1] else None
        by_images = _spread(values)
        both = _sum(by_images, over_seeds)
        known = [w for w, s in (("images", by_images), ("seeds", over_seeds)) if s is not None]
        found[name] = {
            "difference": difference,
            "images": None if values is None else _of_draws(values),
            "seeds": over_seeds.around(difference) if over_seeds else None,
            "both": both.around(difference) if both else None,
            "basis": " and ".join(known),
        }
    return found


def _drawn(systems: Sequence[Scored], seed: int, resamples: int) -> list[dict[str, np.ndarray]]:
    """{metric: [resamples]} of each system: means over its seeds, the same images for all."""
    flat = [statistics for system in systems for statistics in system.statistics]
    draws = iter(resample(flat, seed=seed, resamples=resamples))
    found = []
    for system in systems:
        own = [next(draws) for _ in system.statistics]
        names = [name for name in own[0] if all(name in draw for draw in own)]
        found.append({name: np.mean([draw[name] for draw in own], axis=0) for name in names})
    return found


def _spread(draws: np.ndarray | None) -> Spread | None:
    return None if draws is None else Spread(float(np.var(draws, ddof=1)), math.inf)


def _sum(a: Spread | None, b: Spread | None) -> Spread | None:
    return a + b if a is not None and b is not None else a or b


def _of_draws(differences: np.ndarray) -> dict[str, Any]:
    """As `bootstrap.paired` tells them."""
    settled = np.where(np.abs(differences) < 1e-12, 0.0, differences)
    far = min(int(np.sum(settled <= 0)), int(np.sum(settled >= 0)))
    p = min(1.0, 2 * (far + 1) / (len(settled) + 1))
    return {"interval": interval(settled), "p": p}


def _images(system: Scored) -> int:
    return len(system.statistics[0].columns)
