"""How ZeroCap guides: its hyper-parameters and the three sets of them that are in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from har_jax.errors import UserError, did_you_mean
from har_jax.settings import (
    Beams,
    Count,
    CountOrZero,
    NotNegative,
    Part,
    Path,
    Positive,
    Range,
    Tokens,
    build,
)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Hyper-parameters; the defaults are those of the authors' program (`run.py`).

    Steps are counted from 0, the first word after the prompt. `method="sampled"` is the
    approximation of the HAR paper's own program: it reads `prompt`, `bos`, `max_tokens`,
    `candidates`, `clip_scale` and `keep_prompt`, and no other.
    """

    method: Literal["beam", "sampled"] = field(
        default="beam",
        metadata={"help": "guidance and beam search, or one look at each word and a draw"},
    )
    prompt: str = field(default="Image of a", metadata={"help": "what a caption begins with"})
    bos: bool = field(
        default=True, metadata={"help": "whether the language model's BOS stands before the prompt"}
    )
    max_tokens: Tokens = field(default=15, metadata={"help": "after the prompt"})
    beams: Beams = field(
        default=5, metadata={"help": "texts of an image that are followed at once"}
    )
    iterations: CountOrZero = field(default=5, metadata={"help": "gradient steps for each token"})
    candidates: Count = field(
        default=512, metadata={"help": "likeliest tokens that CLIP judges, in each iteration anew"}
    )
    clip_temperature: Positive = field(
        default=0.01, metadata={"help": "of the softmax over the candidates' cosines"}
    )
    clip_scale: NotNegative = field(
        default=1.0,
        metadata={"help": "weight of CLIP's loss; where words are drawn, that of 100 cos"},
    )
    fluency_scale: NotNegative = field(
        default=0.2, metadata={"help": "weight of KL(p || p0), the language model's own opinion"}
    )
    step_size: NotNegative = field(default=0.3, metadata={"help": "of a gradient step"})
    norm_exponent: NotNegative = field(
        default=0.9, metadata={"help": "a gradient g moves by g / |g| to this power"}
    )
    norm_over: Literal["tensor", "layer"] = field(
        default="tensor",
        metadata={
            "help": "whether a layer's keys and values have norms of their own, or one together"
        },
    )
    fusion: Part = field(default=0.99, metadata={"help": "f of p^f p0^(1-f)"})
    repetition_factor: Annotated[float, Range(at_least=1)] = field(
        default=1.0, metadata={"help": "what the last four tokens are divided by"}
    )
    repetition_of: Literal["logits", "probabilities"] = field(
        default="logits", metadata={"help": "whether it divides logits or probabilities"}
    )
    repetition_prompt: bool = field(
        default=True, metadata={"help": "whether the prompt's tokens count among the last four"}
    )
    end_token: str = field(default=".", metadata={"help": "ends a caption"})
    end_factor: Positive = field(
        default=1.01, metadata={"help": "what the end token's logit is raised by"}
    )
    end_from: CountOrZero = field(
        default=1, metadata={"help": "first step, from 0, at which it is raised"}
    )
    start_factor: Positive = field(
        default=1.6, metadata={"help": "what the end token's logit is lowered by at step 0"}
    )
    forbidden: Path = field(
        default="auto",
        metadata={"help": "auto (numbers, brackets, line ends), none, or a file of token ids"},
    )
    forbidden_factor: Positive = field(
        default=20.0, metadata={"help": "what the logits of forbidden tokens are lowered by"}
    )
    joint: bool = field(
        default=True,
        metadata={
            "help": "probabilities sum to 1 over all beams of an image, as the program has it"
        },
    )
    keep_prompt: bool = field(
        default=True, metadata={"help": "whether a caption is told with its prompt"}
    )

    @classmethod
    def preset(cls, name: str, changes: Mapping[str, Any] | None = None) -> Guidance:
        """A preset with some settings changed.

        Raises:
          UserError: there is no such preset or setting, or a value is not allowed.
        """
        if name not in PRESETS:
            known = ", ".join(PRESETS)
            raise UserError(f"preset {name!r}{did_you_mean(name, PRESETS)}; allowed: {known}")
        guidance: Guidance = build(cls, {**PRESETS[name], **(changes or {})}, "zerocap")
        if not guidance.prompt.strip():
            raise UserError("zerocap.prompt is empty; give the words that a caption begins with")
        return guidance


PRESETS: dict[str, dict[str, Any]] = {
    # The authors' program, github.com/YoadTew/zero-shot-image-to-text, as `run.py` runs it.
    "repo": {},
    # The article's constants (arXiv:2111.14447); what it does not name is as in the program.
    "paper": {
        "norm_exponent": 1.0,
        "norm_over": "layer",
        "repetition_factor": 2.0,
        "repetition_of": "probabilities",
        "repetition_prompt": False,
        "end_factor": 1.04,
        "end_from": 3,
        "joint": False,
    },
    # The program behind the HAR paper's row: one look at each word, no gradient, no beams.
    "approx": {
        "method": "sampled",
        "prompt": "A photo of a",
        "bos": False,
        "max_tokens": 30,
        "candidates": 50,
    },
}
