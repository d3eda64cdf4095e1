"""Guards of SCST: signs that a policy breaks its captions while its reward rises, and what is done.

    guards = Guards(config.guards, reference_length=12.5)
    guards.begin({"reward": 1.2, "length": 11.0, ...})     the MLE policy, before the first step
    trips = guards.observe(step, figures)                  at every log
    trips = guards.observe_validation(step, figures)       at every validation

Each guard looks at one figure:

    bad_end      share of sampled captions that break off ("a man with a"), above that at the start
    repetition   share of bigrams that stood in the caption before, above that at the start
    length       tokens per caption, outside the range of the start and the references
    entropy      of the policy in nats per token, below a floor: all samples become one
    reward       of the samples, below a share of that at the start: the policy has collapsed
    kl           of the policy from the MLE policy in nats per token, above a limit
    clip         CIDEr of the validation captions above, CLIPScore below that at the start

A figure is averaged over `window` logs, and only `patience` averages beyond the limit, one after
the other, make the guard trip; `clip`, an average over the whole validation split, trips at once.
What a trip leads to is the configuration's: "warn", "stop", or "rollback" to the best checkpoint.
Nothing here knows JAX: the state is JSON, kept in checkpoints, so that a resumed run does as an
unbroken one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from har_jax.config import GuardsConfig

Action = Literal["warn", "stop", "rollback"]


@dataclasses.dataclass(frozen=True)
class Trip:
    """A guard that found its figure beyond the limit."""

    guard: str
    action: Action
    step: int
    value: float
    limit: float
    text: str  # what was seen, in one line, without the guard's name

    def __str__(self) -> str:
        return f"guard {self.guard}: {self.text}"


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How a guard reads the logs."""

    figure: str
    what: str
    percent: bool = False


RULES = {
    "bad_end": _Rule("bad_end_rate", "of the sampled captions break off, as in 'with a'", True),
    "repetition": _Rule("repetition_rate", "of the sampled captions' bigrams are repeated", True),
    "length": _Rule("length", "tokens per caption"),
    "entropy": _Rule("entropy", "nats per token of entropy"),
    "reward": _Rule("reward", "reward of the samples"),
    "kl": _Rule("kl", "nats per token from the MLE policy"),
}
"""The guards of the training logs; `clip` looks at validations instead."""

NAMES = (*RULES, "clip")


@dataclasses.dataclass
class _Watch:
    """What a guard remembers."""

    recent: list[float] = dataclasses.field(default_factory=list)
    beyond: int = 0  # averages beyond the limit, one after the other


class Guards:
    """See the module's docstring.

    Args:
      config: actions and limits.
      reference_length: tokens of the training references, EOS included, on average; the guard of
        the length tolerates what lies between it and the start.

    Attributes:
      lr_scale: what the learning rate is multiplied by, after the roll-backs so far.
      rollbacks: {"step", "to", "guards"} of each of them.
    """

    def __init__(self, config: GuardsConfig, *, reference_length: float | None = None):
        self.config = config
        self._reference_length = reference_length
        self._start: dict[str, float] = {}
        self.forget()
        self.lr_scale = 1.0
        self.rollbacks: list[dict[str, Any]] = []

    def action(self, guard: str) -> str:
        """ "off", "warn", "stop" or "rollback"."""
        return getattr(self.config, guard)

    @property
    def sound(self) -> bool:
        """Whether no guard that stops or rolls back is beyond its limit; only such a checkpoint may
        become the best one, which others roll back to."""
        return not any(
            watch.beyond
            for name, watch in self._watches.items()
            if self.action(name) in ("stop", "rollback")
        )

    def begin(self, figures: Mapping[str, float]) -> None:
        """Figures of the policy before the first step, by the names of the logs (validation figures
        as `val/CIDEr`, `val/CLIPScore`). What is left out here, the first log gives."""
        self._start |= {name: float(value) for name, value in figures.items()}

    def observe(self, step: int, figures: Mapping[str, float]) -> list[Trip]:
        """The guards that trip at this log of training."""
        trips = []
        for name, rule in RULES.items():
            if self.action(name) == "off" or rule.figure not in figures:
                continue
            value = float(figures[rule.figure])
            self._start.setdefault(rule.figure, value)
            watch = self._watches[name]
            watch.recent = [*watch.recent, value][-self.config.window :]
            mean = sum(watch.recent) / len(watch.recent)
            crossed = self._crossed(name, mean)
            watch.beyond = 0 if crossed is None else watch.beyond + 1
            if crossed is not None and self._acts(name, watch.beyond, self.config.patience):
                trips.append(self._trip(name, step, mean, *crossed))
        return trips

    def observe_validation(self, step: int, figures: Mapping[str, float]) -> list[Trip]:
        """`clip`, if it trips at this validation; figures are `CIDEr` and `CLIPScore`."""
        if self.action("clip") == "off" or not {"CIDEr", "CLIPScore"} <= figures.keys():
            return []
        cider, clip = figures["CIDEr"], figures["CLIPScore"]
        cider0 = self._start.setdefault("val/CIDEr", cider)
        clip0 = self._start.setdefault("val/CLIPScore", clip)
        limit = clip0 - self.config.clip_drop
        watch = self._watches["clip"]
        watch.beyond = watch.beyond + 1 if cider > cider0 and clip < limit else 0
        if not (watch.beyond and self._acts("clip", watch.beyond, 1)):
            return []
        text = (
            f"CLIPScore of the validation captions is {clip:.3f}, {clip0:.3f} at the start, while "
            f"CIDEr rose from {cider0:.3f} to {cider:.3f}: the reward is met by words that do not "
            "fit the images"
        )
        return [self._trip("clip", step, clip, limit, text)]

    def rolled_back(self, step: int, to: int, trips: list[Trip]) -> None:
        """Notes a roll-back: the learning rate falls, and every guard starts to count anew."""
        self.lr_scale *= self.config.rollback_lr_factor
        self.rollbacks.append({"step": step, "to": to, "guards": [trip.guard for trip in trips]})
        self.forget()

    def forget(self) -> None:
        """Counts anew; what was seen at the start, and the roll-backs, stay."""
        self._watches = {name: _Watch() for name in NAMES}

    def state(self) -> dict[str, Any]:
        """JSON-able; `restore` takes it."""
        return {
            "start": self._start,
            "watches": {name: dataclasses.asdict(w) for name, w in self._watches.items()},
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was called; limits and actions are those of now."""
        self._start = dict(state["start"])
        self.forget()
        self._watches |= {name: _Watch(**watch) for name, watch in state["watches"].items()}
        self.lr_scale = float(state["lr_scale"])
        self.rollbacks = list(state["rollbacks"])

    def _crossed(self, name: str, value: float) -> tuple[float, str] | None:
        """(the limit, what is wrong) if the value lies beyond it."""
        config, start = self.config, self._start[RULES[name].figure]
        usual = sorted((start, self._reference_length or start))
        low, high = {
            "bad_end": (-math.inf, start + config.bad_end_rise),
            "repetition": (-math.inf, start + config.repetition_rise),
            "length": ((1 - config.length_drift) * usual[0], (1 + config.length_drift) * usual[1]),
            "entropy": (config.entropy_floor, math.inf),
            "reward": (start - config.reward_drop * abs(start), math.inf),
            "kl": (-math.inf, config.kl_limit),
        }[name]
        if low <= value <= high:
            return None
        limit, side = (low, "below") if value < low else (high, "above")
        rule = RULES[name]
        form = "{:.1%}" if rule.percent else "{:.3g}"
        shown, bound, before = (form.format(x) for x in (value, limit, start))
        at_start = "" if name in ("kl", "entropy") else f", {before} at the start"
        return limit, f"{shown} {rule.what}, {side} the limit of {bound}{at_start}"

    def _acts(self, name: str, beyond: int, patience: int) -> bool:
        """A warning is given once, when patience ends; the other actions end the matter."""
        return beyond == patience if self.action(name) == "warn" else beyond >= patience

    def _trip(self, name: str, step: int, value: float, limit: float, text: str) -> Trip:
        action: Any = self.action(name)
        if action == "rollback" and len(self.rollbacks) >= self.config.max_rollbacks:
            action = "stop"
            text += f", after {len(self.rollbacks)} roll-backs (config.guards.max_rollbacks)"
        return Trip(name, action, step, value, limit, text)
