"""Rewards as weighted sums: "cider_d + 0.5*bleu - 1.0*bias", or {name: weight}.

Names:

    cider_d         CIDEr-D with the training split's document frequencies, [0, 10]
    bleu            sentence BLEU-4, [0, 1]
    bias            gendered words that no reference supports, LIC's lists, {0, 1/2, 1}
    bias_balanced   the same with lists in which every word has a counterpart
    length          words outside the range of the references' lengths, relative to their mean
    repetition      share of repeated bigrams, [0, 1]
    clip_score      CLIPScore of the caption for the image, 2.5 included, [0, 2.5], by the CLIP that
                    the caller gives (config.scst.reward_clip)
    pac_score       PAC-S likewise, 2 included, [0, 2], by the CLIP of that
    package.module:function
                    yours: function(image_ids, captions, ended) -> numbers [B, R], as `contract`
                    says; it also gets `references`, {image id: [text]}, if it takes that keyword

bias, length and repetition are penalties: their weights should be negative. A weight of 0 reports a
part without training on it.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from har_jax.errors import UserError, did_you_mean, raised_by
from har_jax.metrics.document_frequency import DocumentFrequency
from har_jax.metrics.embedding_scores import KINDS
from har_jax.plugins import load_function, signature_of
from har_jax.rewards import contract
from har_jax.rewards.bleu import BleuReward
from har_jax.rewards.cider_d import CiderDReward
from har_jax.rewards.contract import DeviceReward, Ended, ImageIds, Reward, Texts, Values
from har_jax.rewards.per_caption import BiasPenalty, LengthPenalty, RepetitionPenalty
from har_jax.text.words import PTB, Words

Spec = str | Mapping[str, float]

BY_CLIP = tuple(kind.part for kind in KINDS.values())
"""Parts that need a CLIP."""
NAMES = ("cider_d", "bleu", "bias", "bias_balanced", "length", "repetition", *BY_CLIP)
EXAMPLE = "'cider_d + 0.5*bleu - 1.0*bias'"

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::[A-Za-z_]\w*)?"
_TERM = re.compile(
    rf"\s*(?P<sign>[+-]?)\s*(?:(?P<before>{_NUMBER})\s*\*\s*)?(?P<name>{_NAME})"
    rf"(?:\s*\*\s*(?P<after>{_NUMBER}))?\s*"
)


def parse(spec: Spec) -> dict[str, float]:
    """{name: weight} in the order written; names are not looked up yet.

    Raises:
      UserError: not such a sum, a name twice, or a weight that is no finite number.
    """
    if isinstance(spec, Mapping):
        weights = dict(spec)
    elif isinstance(spec, str):
        weights = _parse_sum(spec)
    else:
        raise UserError(
            f"a reward is a {type(spec).__name__}; give a sum such as {EXAMPLE} or {{name: weight}}"
        )
    if not weights:
        raise UserError(f"the reward {spec!r} is empty; give a sum such as {EXAMPLE}")
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight):
            raise UserError(f"the weight of reward {name!r} is {weight!r}, need a finite number")
    return {str(name): float(weight) for name, weight in weights.items()}


def _parse_sum(spec: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    end = 0
    while end < len(spec) and not spec[end:].isspace():
        term = _TERM.match(spec, end)
        if term is None or (weights and not term["sign"]) or (term["before"] and term["after"]):
            raise UserError(
                f"the reward {spec!r} cannot be read at {spec[end:].strip()!r}; write a sum such "
                f"as {EXAMPLE}"
            )
        name = term["name"]
        if name in weights:
            raise UserError(f"the reward {spec!r} has {name!r} twice; give it one weight")
        weight = float(term["before"] or term["after"] or 1.0)
        weights[name] = -weight if term["sign"] == "-" else weight
        end = term.end()
    return weights


def build(
    spec: Spec,
    document_frequency: DocumentFrequency | None,
    references: Mapping[int, Sequence[str]],
    *,
    eos: bool = True,
    by_clip: Reward | None = None,
    words: Words = PTB,
) -> MixedReward:
    """The reward that a specification describes.

    Args:
      spec: see the module's docstring.
      document_frequency: of the training split; None is enough where `cider_d` is not in.
      references: raw captions of every image that will be scored. Kept, not copied.
      eos: whether the end of a caption is a word to CIDEr-D.
      by_clip: the part clip_score, or pac_score, where that is in.
      words: what the parts that look at words count.

    Raises:
      UserError: a specification that cannot be read, an unknown name or function, references that
        a part cannot use, or document frequencies of other words.
    """
    weights = parse(spec)
    own: dict[str, Callable[[], Reward]] = {
        "bleu": lambda: BleuReward(references, words=words),
        "bias": lambda: BiasPenalty(references, words=words),
        "bias_balanced": lambda: BiasPenalty(references, lists="balanced", words=words),
        "length": lambda: LengthPenalty(references, words=words),
        "repetition": lambda: RepetitionPenalty(words=words),
    }

    def part(name: str) -> Reward:
        if name == "cider_d":
            if document_frequency is None:
                raise UserError(
                    "the reward cider_d needs the document frequencies of the training references, "
                    "got none; `python -m har_jax.prepare` writes them beside a dataset"
                )
            return CiderDReward(document_frequency, references, eos=eos, words=words)
        if name in BY_CLIP:
            if by_clip is None:
                raise UserError(
                    f"the reward {name} needs a CLIP; name one, and not the one that scores: "
                    "--config.scst.reward_clip=HF_DIR"
                )
            return by_clip
        if name in own:
            return own[name]()
        if ":" in name:
            return FunctionReward(name, references)
        raise UserError(
            f"unknown reward {name!r}{did_you_mean(name, NAMES)}; choose from {', '.join(NAMES)}, "
            "or name a function of yours as package.module:function"
        )

    return MixedReward({name: part(name) for name in weights}, weights)


class FunctionReward:
    """A user's function as a reward. What it returns is converted to float32 and checked.

    Its signature is that of `plugins.signature_of`.

    Args:
      path: "package.module:function".
      references: passed on if the function has a parameter of that name.

    Raises:
      UserError: no such module or function, or it is not callable.
    """

    def __init__(self, path: str, references: Mapping[int, Sequence[str]]):
        self._path = path
        function = load_function(path, "reward")
        try:
            takes = inspect.signature(function).parameters
        except (TypeError, ValueError):  # some built-in functions do not say what they take
            takes = {}
        self._keywords: dict[str, Any] = {"references": references} if "references" in takes else {}
        self._function = function
        self.signature = signature_of(path, function)

    def __call__(
        self, image_ids: ImageIds, captions: Texts, ended: Ended
    ) -> Float32[np.ndarray, " ..."]:
        """See `contract.Reward`.

        Raises:
          UserError: the function raised, and what and where; or it returned no numbers.
        """
        try:
            values = self._function(image_ids, captions, ended, **self._keywords)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"the reward {self._path} raised {raised_by(error)}") from error
        try:
            return np.asarray(values, np.float32)
        except Exception:
            raise UserError(
                f"reward {self._path} returned a {type(values).__name__} that is no array of "
                f"numbers; return one number per caption, shape {ended.shape}"
            ) from None


class MixedReward:
    """sum of weight * part; see `build`. Thread-safe.

    Args:
      parts: rewards by name.
      weights: a weight for each of them.

    Raises:
      UserError: no parts, or names that do not agree.
    """

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float]):
        if not parts or set(parts) != set(weights):
            raise UserError(
                f"parts {sorted(parts)} and weights {sorted(weights)} of a reward must have the "
                "same names, at least one"
            )
        self.parts = dict(parts)
        self.weights = {name: float(weights[name]) for name in parts}

    @classmethod
    def single(cls, reward: Reward, name: str = "reward") -> MixedReward:
        """A sum of one part of weight 1."""
        return cls({name: reward}, {name: 1.0})

    @property
    def signature(self) -> str:
        """Its parts' own, with their weights; a single part of weight 1 is just that part."""
        pairs = [(self.weights[key], contract.name_of(part)) for key, part in self.parts.items()]
        if len(pairs) == 1 and pairs[0][0] == 1:
            return pairs[0][1]
        return " + ".join(f"{weight!r}*{name}" for weight, name in pairs)

    @property
    def device_parts(self) -> dict[str, DeviceReward]:
        """The parts that a step computes on its devices; the callback computes the others."""
        return {name: part for name, part in self.parts.items() if isinstance(part, DeviceReward)}

    def load(self, mesh: Any, folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Makes the parts ready for steps, see `contract.LoadedReward`; returns the parameters that
        a step has to be given, each under its part's name (`params_of`)."""
        params: dict[str, Any] = {}
        for name, part in self.parts.items():
            if isinstance(part, contract.LoadedReward):
                found = part.load(mesh, folder)
                params |= {f"reward.{name}.{own}": value for own, value in found.items()}
        return params

    def params_of(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A part's own among the parameters of a step, under the names that it gave them."""
        start = f"reward.{name}."
        return {key.removeprefix(start): x for key, x in params.items() if key.startswith(start)}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Keeps in a run's directory what its parts took long to make."""
        for part in self.parts.values():
            if isinstance(part, contract.LoadedReward):
                part.save(folder)

    def breakdown(
        self, image_ids: ImageIds, captions: Texts, ended: Ended
    ) -> tuple[Values, dict[str, Values]]:
        """(the reward, {name: the part's values without its weight}), on the host alone. Inside a
        step `rewards.callback` computes the same.

        Raises:
          UserError: see `contract.checked`; the message names the part.
        """
        asked = image_ids, captions, ended
        values = {name: contract.checked(part, *asked) for name, part in self.parts.items()}
        # Summed in double precision, so that a single part of weight 1 stays what it is.
        total = np.zeros(ended.shape)
        for name, v in values.items():
            total += self.weights[name] * v.astype(np.float64)
        return total.astype(np.float32), values

    def __call__(self, image_ids: ImageIds, captions: Texts, ended: Ended) -> Values:
        """See `contract.Reward`; the first result of `breakdown`."""
        return self.breakdown(image_ids, captions, ended)[0]
