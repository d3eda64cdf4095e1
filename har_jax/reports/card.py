"""The model card of an exported run: `README.md` as the Hugging Face hub shows it.

The front matter is for the hub's search (`model-index` has the scores), the text for people. All of
it comes from the run's own files. Of paths only the last part is told: a card is public.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jinja2

from har_jax.interchange import hub
from har_jax.reports.run_view import RunView, ScoredSplit, read_view
from har_jax.reports.tables import Measure, comparison_rows, interval_of, lookup, step_of

Form = Literal["llava", "decoder", "peft"]

_METRICS = (
    *(Measure("CIDEr", "CIDEr"), Measure("Bleu_1", "BLEU-1"), Measure("Bleu_2", "BLEU-2")),
    *(Measure("Bleu_3", "BLEU-3"), Measure("Bleu_4", "BLEU-4"), Measure("ROUGE_L", "ROUGE-L")),
    *(Measure("METEOR", "METEOR"), Measure("SPICE", "SPICE")),
    *(Measure("CLIPScore", "CLIPScore"), Measure("RefCLIPScore", "RefCLIPScore")),
)
"""The scores of a card; the names of `model-index` are theirs in small letters."""
_LIBRARY = {"llava": "transformers", "decoder": "transformers", "peft": "peft"}
_STAGES = {"mle": "maximum likelihood", "scst": "self-critical training"}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}")


class CardSource(NamedTuple):
    """What a card tells that the run's files do not.

    Attributes:
      form: what the directory is.
      step: the one that was exported.
      name: what it is loaded by: the hub's name, or the directory.
      text: the text input of a LLaVA's processor.
      license: the hub's identifier; "" where nobody said one.
    """

    form: Form
    step: int
    name: str
    text: str = ""
    license: str = ""


class Base(NamedTuple):
    """One of the two models that a captioner is built upon."""

    part: str  # "encoder" or "decoder"
    name: str
    revision: str
    fingerprint: str
    on_hub: bool


def is_license(text: str) -> bool:
    """Whether it can be an identifier of a licence, such as `apache-2.0`."""
    return bool(_LICENSE.fullmatch(text))


def model_card(run_dir: str | os.PathLike[str], source: CardSource) -> str:
    """The contents of `README.md`.

    Raises:
      UserError: there is no such run directory.
    """
    from huggingface_hub import ModelCardData

    view = read_view(run_dir)
    bases = _bases(view)
    scored = {k: each for k, each in view.splits.items() if step_of(each.scores) == _step(source)}
    metadata = ModelCardData(
        license=source.license or None,
        library_name=_LIBRARY[source.form],
        pipeline_tag="text-generation" if source.form == "decoder" else "image-to-text",
        tags=_tags(view, source.form),
        base_model=[base.name for base in bases if base.on_hub] or None,
        base_model_relation="adapter" if source.form == "peft" else "finetune",
        datasets=[_dataset(view)],
        model_name=_title(source.name),
        eval_results=_results(scored, _dataset(view)) or None,
        har_jax={
            "step": source.step,
            "reward_signature": view.info.get("reward_signature"),
            "base": {base.part: _known(base) for base in bases},
        },
    )
    if not metadata.get("base_model"):
        metadata.pop("base_model_relation")
    return f"---\n{metadata.to_yaml()}\n---\n\n" + _text(view, source, bases, scored)


def _step(source: CardSource) -> str:
    return str(source.step)


def _known(base: Base) -> dict[str, str]:
    told = {"name": base.name, "revision": base.revision, "fingerprint": base.fingerprint}
    return {key: value for key, value in told.items() if value}


def _bases(view: RunView) -> list[Base]:
    """From `run.json`; a directory's name is the last part of its path."""
    found = []
    weights = {"clip": {}, **(view.info.get("base") or {})}
    for part, entry in (
        ("encoder", weights.get("encoder") or weights["clip"]),
        ("decoder", weights.get("lm")),
    ):
        if not isinstance(entry, Mapping) or not entry.get("path"):
            continue
        path, revision = str(entry["path"]), str(entry.get("revision") or "")
        on_hub = hub.parsed(path) if revision else None  # what is pinned came from there
        name = on_hub.repo if on_hub else os.path.basename(path.rstrip("/"))
        print_ = str(entry.get("fingerprint") or "")
        found.append(Base(part, name, revision, print_, on_hub is not None))
    return found


def _data(view: RunView) -> Mapping[str, Any]:
    found = view.config.get("data")
    return found if isinstance(found, Mapping) else {}


def _dataset(view: RunView) -> str:
    """What the dataset is called: the last part of its directory."""
    name = os.path.basename(str(_data(view).get("dir") or "").rstrip("/"))
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unknown"


def _tags(view: RunView, form: Form) -> list[str]:
    lora = ["lora"] if view.info.get("lora") else []
    stage = [view.stage] if view.stage in _STAGES else []
    return ["image-captioning", "har_jax", "jax", *stage, *lora, *(["llava"] * (form == "llava"))]


def _title(name: str) -> str:
    return os.path.basename(name.rstrip("/")) or name


def _results(scored: Mapping[str, ScoredSplit], dataset: str) -> list[Any]:
    """What `model-index` is made of."""
    from huggingface_hub import EvalResult

    found = []
    for split, each in sorted(scored.items()):
        scores, source = each.scores, each.scores.get("source") or {}
        of = str(source.get("split") or split)
        how = {key: scores[key] for key in ("n_images", "signature") if scores.get(key)}
        how |= {key: source[key] for key in ("method",) if source.get(key)}
        for measure in _METRICS:
            value = lookup(scores, measure.key)
            if value is None:
                continue
            interval = interval_of(scores, measure.key)
            level = lookup(scores, "confidence/level")
            spread = {"confidence_level": level, "interval": list(interval)} if interval else None
            found.append(
                EvalResult(
                    task_type="image-to-text",
                    task_name="Image captioning",
                    dataset_type=dataset,
                    dataset_name=_scored_on(each, dataset, split),
                    dataset_config=None if split == of else split,
                    dataset_split=of,
                    dataset_args=how,
                    metric_type=measure.key.lower(),
                    metric_name=measure.label,
                    metric_value=value,
                    metric_args=spread,
                )
            )
    return found


def _scored_on(each: ScoredSplit, dataset: str, split: str) -> str:
    data = str((each.scores.get("source") or {}).get("data") or dataset)
    return f"{os.path.basename(data.rstrip('/'))} {split}"


def _text(
    view: RunView, source: CardSource, bases: list[Base], scored: Mapping[str, ScoredSplit]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("har_jax.reports"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    environment.filters["quoted"] = json.dumps
    return environment.get_template("card.md.j2").render(
        source=source,
        title=_title(source.name),
        form=source.form,
        stage=_STAGES.get(view.stage, view.stage),
        bases=bases,
        dataset=_dataset(view),
        data=view.info.get("data") or {},
        rows=_settings(view, source),
        reward=view.info.get("reward_signature"),
        tables=[_table(name, each) for name, each in sorted(scored.items())],
        elsewhere=sorted(name for name in view.splits if name not in scored),
        warnings=sorted({str(w) for e in scored.values() for w in e.scores.get("warnings") or []}),
    )


def _table(name: str, each: ScoredSplit) -> dict[str, Any]:
    scores = each.scores
    rows = []
    for row in comparison_rows({"": [scores]}, _METRICS):
        interval = interval_of(scores, row.measure.key)
        spread = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "–"
        rows.append((row.measure.label, row.texts[0], spread))
    level = lookup(scores, "confidence/level")
    return {
        "name": name,
        "rows": rows,
        "n": scores.get("n_images", "?"),
        "method": (scores.get("source") or {}).get("method") or "unknown",
        "level": "interval" if level is None else f"{100 * level:.0f} % interval",
        "signature": scores.get("signature") or "unknown",
    }


def _settings(view: RunView, source: CardSource) -> list[tuple[str, str]]:
    """What a run was trained with, in the order of its telling."""
    config, info = view.config, view.info
    parts = {key: value if isinstance(value := config.get(key), dict) else {} for key in config}
    optim, model, scst = (parts.get(key, {}) for key in ("optim", "model", "scst"))
    counts, parent, versions = (info.get(k) or {} for k in ("parameters", "parent", "versions"))
    rows: list[tuple[str, Any]] = [
        ("stage", _STAGES.get(view.stage, view.stage)),
        ("step exported, of", f"{source.step} of {config.get('steps', '?')}"),
        ("images in a batch", config.get("batch_size")),
        ("optimizer", f"{optim.get('name')}, lr {optim.get('lr')}, {optim.get('schedule')}"),
        ("seed", config.get("seed")),
        ("captions of an image in a step", _data(view).get("captions_per_image")),
        ("tokens of a caption, at most", _data(view).get("max_tokens")),
        ("projector", model.get("projector")),
        ("prompt", model.get("prompt") or None),
        ("dtype", f"{model.get('dtype')}, parameters {model.get('param_dtype')}"),
        ("parameters", f"{counts.get('total', '?'):,}" if counts.get("total") else None),
        ("of which learned", f"{counts['trained']:,}" if counts.get("trained") else None),
    ]
    if lora := info.get("lora"):
        told = f"rank {lora.get('rank')}, alpha {lora.get('alpha')}, on {lora.get('targets')}"
        rows.append(("LoRA", told))
    if view.stage == "scst":
        rows.append(("reward", scst.get("reward")))
        rows.append(
            ("samples of an image, baseline", f"{scst.get('samples')}, {scst.get('baseline')}")
        )
    if parent.get("run"):
        named = os.path.basename(str(parent["run"]).rstrip("/"))
        rows.append(("starts from", f"run {named}, step {parent.get('step')}"))
    rows.append(("devices", info.get("devices")))
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def cell(value: object) -> str:
    """A value in a Markdown table, as code; what could end the cell or the code is taken out."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""
