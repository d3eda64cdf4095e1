"""How ZeroCap guides: its hyper-parameters and the three sets of them that are in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from har_jax.config import Count, CountOrZero, NotNegative, Positive, Range, build
from har_jax.errors import UserError, did_you_mean

Fusion = Annotated[float, Range(at_least=0, at_most=1)]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Hyper-parameters; the defaults are those of the authors' program (`run.py`).

    Steps are counted from 0, the first word after the prompt. `method="sampled"` is the
    approximation of the HAR paper's own program: it reads `prompt`, `bos`, `max_tokens`,
    `candidates`, `clip_scale` and `keep_prompt`, and no other.
    """

    method: Literal["beam", "sampled"] = "beam"
    prompt: str = "Image of a"
    bos: bool = True  # whether the text begins with the language model's BOS
    max_tokens: Count = 15  # after the prompt
    beams: Count = 5
    iterations: CountOrZero = 5  # gradient steps for each token
    candidates: Count = 512  # tokens that CLIP judges, in each iteration anew
    clip_temperature: Positive = 0.01  # of the softmax over the candidates' cosines
    clip_scale: NotNegative = 1.0  # λ of CLIP's loss; of the sampled method, times 100 cos
    fluency_scale: NotNegative = 0.2  # of KL(p ‖ p0)
    step_size: NotNegative = 0.3
    norm_exponent: NotNegative = 0.9  # a gradient g moves by g / ‖g‖^this
    norm_over: Literal["tensor", "layer"] = "tensor"  # keys and values apart, or a layer's together
    fusion: Fusion = 0.99  # p^fusion · p0^(1 - fusion)
    repetition_factor: Annotated[float, Range(at_least=1)] = 1.0  # of the last four tokens
    repetition_of: Literal["logits", "probabilities"] = "logits"  # what it divides
    repetition_prompt: bool = True  # whether the prompt's tokens count among the last four
    end_token: str = "."
    end_factor: Positive = 1.01  # of the end token's logit
    end_from: CountOrZero = 1  # first step at which it is raised
    start_factor: Positive = 1.6  # the end token's logit is lowered by it at step 0
    forbidden: str = "auto"  # a rule, "none", or a file of token ids: see zerocap/vocabulary.py
    forbidden_factor: Positive = 20.0  # of the forbidden tokens' logits
    joint: bool = True  # probabilities sum to 1 over all beams together, as the program has it
    keep_prompt: bool = True  # whether a caption begins with the prompt

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
