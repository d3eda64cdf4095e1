"""The parts that tables are made of: runs, their evaluations, and ZeroCap's captions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.data.features.cache import MANIFEST
from har_jax.errors import UserError
from har_jax.experiments.parts import HERE, Input, Part
from har_jax.experiments.runs import MODELS, SCENES, World, prepare

GUIDE_LM = "gpt2"
"""The miniature language model that ZeroCap guides."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """What a table is made of.

    Attributes:
      preset: of the families `mle` and `scst`.
      guide: the CLIP that guides ZeroCap.
      lm: the language model that it guides.
      judge: the CLIP that scores CLIPScore, as the preset's `eval.clip_score`.
      zerocap: {preset of ZeroCap: arguments that it needs here}.
      cached: the frozen encoder, whose features are computed once for all runs; "": by each step.
      world: made where it is missing; None: the user brings all directories.
    """

    preset: str
    data: str
    guide: str
    lm: str
    judge: str
    zerocap: Mapping[str, Mapping[str, str | int]]
    cached: str = ""
    world: World | None = None

    @property
    def features(self) -> Part | None:
        """What the encoder sees in the images, as a part that runs read; None: they encode."""
        if not self.cached:
            return None
        found = {"--data": Input(self.data), "--encoder": Input(self.cached), "--out": HERE}
        name = f"features-{os.path.basename(self.cached)}"
        return Part(name, "prepare features", found, result=MANIFEST)

    def prepare(self, *, zerocap: bool, dry_run: bool) -> None:
        """Makes or asks for what is to be there beforehand.

        Args:
          zerocap: whether ZeroCap's models are needed.

        Raises:
          UserError: a directory that the user brings is missing.
        """
        if self.world is not None:
            models = (*MODELS, GUIDE_LM) if zerocap else MODELS
            prepare(self.world, models=models, dry_run=dry_run)
            return
        needed = [self.data, *((self.guide, self.lm, self.judge) if zerocap else ())]
        missing = [path for path in needed if not os.path.isdir(path)]
        if missing and not dry_run:
            raise UserError(
                f"--scale=full needs {', '.join(missing)}; put the published weights and the "
                "prepared dataset there (README, Real scale), or use --scale=tiny"
            )


SCALES = {
    "tiny": Scale(
        preset="tiny",
        data=SCENES.data,
        guide=f"{SCENES.models}/clip-l",
        lm=f"{SCENES.models}/{GUIDE_LM}",
        judge=f"{SCENES.models}/clip-b",
        # The scenes' captions do not say "Image of a", and of GPT-2's 675 tokens a few dozen can
        # come next.
        zerocap={
            "repo": {"--prompt": "a picture of a", "--candidates": 64, "--batch-size": 16},
            "approx": {"--prompt": "a picture of a", "--batch-size": 64},
        },
        cached=f"{SCENES.models}/clip-l",
        world=SCENES,
    ),
    "full": Scale(
        preset="coco",
        data="data/coco",
        guide="models/clip-vit-base-patch32",
        lm="models/gpt2-medium",
        judge="models/clip-vit-base-patch32",
        zerocap={"repo": {}, "approx": {}},
    ),
}


def training(
    name: str,
    config: str,
    changes: Mapping[str, Any],
    *,
    parent: Part | None = None,
    steps: int | None = None,
    features: Part | None = None,
) -> Part:
    """A run.

    Args:
      name: of its directory.
      config: a preset, such as "mle:tiny".
      changes: settings of the configuration, such as {"optim.lr": 1e-5}.
      parent: the MLE run that SCST starts from.
      steps: None: the preset's.
      features: of the run's images; None: its encoder looks at them.
    """
    found: dict[str, Any] = {"--config": config, "--workdir": HERE}
    found |= {f"--config.{key}": value for key, value in changes.items()}
    found |= {} if features is None else {"--config.data.features": features}
    found |= {} if steps is None else {"--config.steps": steps}
    found |= {} if parent is None else {"--config.init_from": parent}
    return Part(name, "train", found, result="checkpoints")


def evaluation(run: Part, **arguments: str | int) -> Part:
    """The scores of a run on the test split, in RUN/eval/test; of the first N images where
    `limit=N` is given."""
    limit = arguments.get("limit")
    found: dict[str, Any] = {"--checkpoint": run, "--split": "test"}
    # It looks at the images as ZeroCap does: captions a second are compared.
    found |= {"--features": "none"} if "--config.data.features" in run.arguments else {}
    found |= {f"--{name}": value for name, value in arguments.items()}
    return Part(
        f"eval/test-first-{limit}" if limit else "eval/test",
        "evaluate",
        {**found, "--out": HERE},
        result="scores.json",
        inside=run,
    )


def zerocap(
    scale: Scale, preset: str, *, seed: int | None = None, limit: int | None = None
) -> Part:
    """ZeroCap's captions of the test split, and their scores.

    Args:
      preset: "repo", which is deterministic, or "approx", which samples.
      seed: of a preset that samples.
      limit: the first N images.
    """
    name = "zerocap" if preset == "repo" else f"zerocap-{preset}"
    name += f"-first-{limit}" if limit else ""
    found: dict[str, Any] = {"--data": Input(scale.data), "--split": "test"}
    found |= {"--clip": Input(scale.guide), "--lm": Input(scale.lm), "--preset": preset}
    found |= scale.zerocap[preset]
    found |= {"--limit": limit} if limit else {}
    found |= {} if seed is None else {"--seed": seed}
    found |= {"--score-clip": Input(scale.judge), "--out": HERE}
    return Part(name if seed is None else f"{name}-{seed}", "zerocap", found, result="scores.json")


@dataclasses.dataclass(frozen=True)
class System:
    """A row of a table.

    Attributes:
      name: short, as in file names.
      evaluations: the parts that scored it, for each seed; one of a deterministic system.
      deterministic: whether another seed would have changed nothing.
      parent: the name of the system from whose run of the same seed this one starts.
    """

    name: str
    label: str
    evaluations: Sequence[Part]
    deterministic: bool = False
    parent: str = ""
