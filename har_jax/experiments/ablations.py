"""Ablations: the captioner with one thing changed at a time, each row a few settings.

The first row is HAR as it is; every other one changes settings of both stages, or of SCST alone.
Rows that agree about MLE start from the same run of it, and the first row's runs are those of the
paper's table, where both are made in the same OUT.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.errors import UserError, did_you_mean
from har_jax.evaluation.across_seeds import contrast
from har_jax.experiments.evaluated import Evaluated
from har_jax.experiments.paper import Settings
from har_jax.experiments.parts import Part
from har_jax.experiments.runs import SCENES
from har_jax.experiments.sweep import Sweep, open_sweep
from har_jax.experiments.systems import SCALES, evaluation, training
from har_jax.files import write_bytes, write_json
from har_jax.reports.tables import Measure, markdown_table, signed


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row.

    Attributes:
      name: for `--only`, and in the names of its runs.
      group: what it varies.
      both: changes of both stages' configurations, such as {"model.projector": "pooled"}.
      scst: changes of SCST's; None: there is no SCST.
    """

    name: str
    group: str
    label: str
    both: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scst: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)


BASE = Ablation("har", "", "HAR: patch, greedy baseline, full, K = 5, τ = 1, CIDEr-D, clip-l")
# The miniature decoder learnt other texts: without the output layer its words stay uncertain, and
# adapters want a higher rate than whole kernels do.
_LORA = {
    "model.lora.rank": 32,
    "model.lora.targets": "(attn|mlp).(q|k|v|o|gate|up|down)|lm_head",
    "optim.lr": 2e-2,
}
_LORA_SCST = {"optim.lr": 4e-3}
_KEPT = "model.frozen_dtype"
_POOLED = {"model.projector": "pooled"}
_CLIP_B = {"model.encoder": f"{SCENES.models}/clip-b"}
_CLIP_REWARD = {
    "scst.reward": "cider_d + 2*clip_score",
    "scst.reward_clip": f"{SCENES.models}/clip-l",  # the one that scores has no part in it
}
ABLATIONS = (
    BASE,
    Ablation("mle", "stages", "MLE alone", scst=None),
    Ablation("pooled", "projector", "pooled, 10 tokens", _POOLED),
    Ablation("pooled-mle", "projector", "pooled, MLE alone", _POOLED, None),
    Ablation("loo", "baseline", "leave-one-out", scst={"scst.baseline": "leave_one_out"}),
    Ablation("both", "baseline", "greedy and leave-one-out", scst={"scst.baseline": "both"}),
    Ablation("lora", "decoder", "LoRA, r = 32", _LORA, _LORA_SCST),
    Ablation("lora-mle", "decoder", "LoRA, r = 32, MLE alone", _LORA, None),
    Ablation("int8", "decoder", "LoRA, base in int8", {**_LORA, _KEPT: "int8"}, _LORA_SCST),
    Ablation("nf4", "decoder", "LoRA, base in nf4", {**_LORA, _KEPT: "nf4"}, _LORA_SCST),
    Ablation("frozen", "decoder", "frozen, the projector learns", {"model.train_lm": False}),
    Ablation("k2", "samples", "K = 2", scst={"scst.samples": 2}),
    Ablation("k10", "samples", "K = 10", scst={"scst.samples": 10}),
    Ablation("cool", "temperature", "τ = 0.7", scst={"scst.temperature": 0.7}),
    Ablation("warm", "temperature", "τ = 1.3", scst={"scst.temperature": 1.3}),
    Ablation("no-eos", "reward", "CIDEr-D without EOS as a word", scst={"scst.eos": False}),
    Ablation("bleu", "reward", "CIDEr-D + BLEU", scst={"scst.reward": "cider_d + bleu"}),
    Ablation("clip", "reward", "CIDEr-D + 2 CLIPScore", scst=_CLIP_REWARD),
    Ablation(
        "repetition",
        "reward",
        "CIDEr-D − repetition",
        scst={"scst.reward": "cider_d - repetition"},
    ),
    # It is the smaller of the two, and here also the one that scores: the row carries a warning.
    Ablation("clip-b", "encoder", "clip-b", _CLIP_B),
    Ablation("clip-b-mle", "encoder", "clip-b, MLE alone", _CLIP_B, None),
)
MEASURES = (
    Measure("CIDEr", "CIDEr"),
    Measure("Bleu_4", "BLEU-4"),
    Measure("ROUGE_L", "ROUGE-L"),
    Measure("METEOR", "METEOR"),
    Measure("CLIPScore", "CLIPScore"),
    Measure("health/mean_length", "words", "words", "neither"),
    Measure("health/bad_end_rate", "bad endings", "rate", "lower"),
    Measure("health/repetition_rate", "repeated bigrams", "rate", "lower"),
)


def listing() -> str:
    """The known ablations, a line each."""
    rows = [(a.name, a.group, a.label) for a in ABLATIONS]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = (f"{n:{widths[0]}}  {g:{widths[1]}}  {label}" for n, g, label in rows)
    return "\n".join(lines)


def pick(only: str | None) -> tuple[Ablation, ...]:
    """Those that are named, in the table's order, and always the first row; None: all.

    Raises:
      UserError: a name is unknown.
    """
    if only is None:
        return ABLATIONS
    known = {ablation.name: ablation for ablation in ABLATIONS}
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near, names_known = did_you_mean(name, known), ", ".join(known)
            raise UserError(f"--only={only}: there is no ablation {name!r}{near}; {names_known}")
    if not names:
        raise UserError(f"--only={only!r} names no ablation; choose from {', '.join(known)}")
    return tuple(a for a in ABLATIONS if a is BASE or a.name in names)


def scored(ablation: Ablation, seed: int, settings: Settings) -> Part:
    """The evaluation of a row's run."""
    scale, steps = SCALES[settings.scale], settings.steps
    # Another eye, or another of its layers, sees other features.
    own_eye = any(key in ablation.both for key in ("model.encoder", "model.projector"))
    features = None if own_eye else scale.features
    # Rows that leave MLE as it is share its run, whose name is then the paper's.
    suffix = f"-{ablation.name.removesuffix('-mle')}" if ablation.both else ""
    changes = {"seed": seed, **ablation.both}
    first = f"mle:{scale.preset}"
    run = training(f"mle{suffix}-{seed}", first, changes, steps=steps[0], features=features)
    if ablation.scst is not None:
        name = f"scst-{seed}" if ablation is BASE else f"scst-{ablation.name}-{seed}"
        changes |= ablation.scst
        then = {"parent": run, "steps": steps[1], "features": features}
        run = training(name, f"scst:{scale.preset}", changes, **then)
    some = {} if settings.limit is None else {"limit": settings.limit}
    return evaluation(run, control="shuffle", **some)


def run(settings: Settings, only: str | None = None) -> None:
    """Makes what is missing and writes `OUT/ablations.md` and `OUT/ablations.json`."""
    began, chosen = time.monotonic(), pick(only)
    with open_sweep(settings.out, dry_run=settings.dry_run) as sweep:
        parts = [scored(row, seed, settings) for seed in settings.seeds for row in chosen]
        scale, dry_run = SCALES[settings.scale], settings.dry_run
        sweep.make_all(parts, lambda: scale.prepare(zerocap=False, dry_run=dry_run))
        if settings.dry_run:
            return
        text = report(settings, sweep, chosen, only)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{text}\n{minutes:.1f} minutes; written to {settings.out / 'ablations.md'}")


def report(
    settings: Settings, sweep: Sweep, chosen: Sequence[Ablation], only: str | None = None
) -> str:
    """Writes the table and the scores behind it; returns the table."""
    parts = {a.name: [scored(a, seed, settings) for seed in settings.seeds] for a in chosen}
    read = {name: Evaluated(sweep.places(own)) for name, own in parts.items()}
    scores = {name: found.scores for name, found in read.items()}
    labels = {a.name: f"{a.group}: {a.label}" if a.group else a.label for a in chosen}
    n, seeds = scores[BASE.name][0]["n_images"], len(settings.seeds)
    made_by = settings.command_line("ablations") + (f" --only={only}" if only else "")
    lines = [f"Test split, {n} images, mean ± std over {seeds} seed(s); made by `{made_by}`.", ""]
    rows = {labels[name]: own for name, own in scores.items()}
    lines += [markdown_table(rows, MEASURES), ""]
    for a in chosen[1:]:
        linked = not a.both
        lines.append(_against_base(labels[a.name], read[a.name], read[BASE.name], linked=linked))
    warnings = {
        f"- warning, {labels[name]}: {text}": None
        for name, own in scores.items()
        for found in own
        for text in found.get("warnings", [])
    }
    text = "\n".join([*lines, *warnings]) + "\n"
    write_bytes(settings.out / "ablations.md", text.encode())
    record = {
        ablation.name: {
            "group": ablation.group,
            "label": ablation.label,
            "both": dict(ablation.both),
            "scst": None if ablation.scst is None else dict(ablation.scst),
            "parts": [sweep.name(part) for part in parts[ablation.name]],
            "scores": dict(zip(map(str, settings.seeds), scores[ablation.name], strict=True)),
        }
        for ablation in chosen
    }
    write_json(settings.out / "ablations.json", {"made_by": made_by, "rows": record})
    return text


def _against_base(label: str, ours: Evaluated, base: Evaluated, *, linked: bool) -> str:
    """`- LoRA, against the first row: CIDEr -0.100 (-0.120 to -0.080), p = 0.001; ...`.

    Args:
      linked: whether both start from the same run of MLE, or one from the other.
    """
    found, told = contrast(ours.scored, base.scored, linked=linked), []
    for measure in MEASURES[:5]:
        if measure.key in found:
            text, both = signed(found[measure.key]["difference"]), found[measure.key]["both"]
            if both:
                low, high = both["interval"]
                text += f" ({signed(low)} to {signed(high)}), p = {both['p']:.3f}"
            told.append(f"{measure.label} {text}")
    return f"- {label}, against the first row: {'; '.join(told)}"
