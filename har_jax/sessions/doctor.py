"""Before SCST starts: does the reward see the captions as the references are, and is there anything
for it to teach?

`examine_texts` needs no device: tokenizer, end of sentence, document frequencies, and what the
reward says of the references themselves. `examine_policy` lets the MLE policy write captions by the
very function that training differentiates, and looks at what they earn. A finding of severity
"stop" means that training could only waste its time; `docs/doctor.md` explains each.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import numpy as np

from har_jax.distributed import mean_over_processes, put_batch
from har_jax.errors import UserError
from har_jax.figures import Figure, merge
from har_jax.metrics import health, ngrams
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.models.captioner import CaptionerConfig
from har_jax.models.functional import Params
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.cider_d import CiderDReward
from har_jax.rewards.limit import Limit
from har_jax.sessions.assemble import Session
from har_jax.sessions.observe import rollout_words
from har_jax.sessions.plan import SessionPlan
from har_jax.text.tokenizer import CaptionTokenizer
from har_jax.text.words import Words

log = logging.getLogger(__name__)

IMAGES = 64
"""How many training images are looked at; a policy is looked at in whole batches."""

Severity = Literal["ok", "warn", "stop"]
Images = list[list[list[str]]]  # words of captions of images


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at: what was seen, with numbers, and what to do about it if it is not ok."""

    name: str
    severity: Severity
    text: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice and self.severity != "ok" else ""
        return f"{self.severity:<4}  {self.name:<11}  {self.text}{advice}"


@dataclasses.dataclass(frozen=True)
class Examination:
    """All findings, and the policy's figures before the first step by the names of the logs."""

    findings: list[Finding]
    figures: dict[str, float]


def _at_most(value: float, warn: float, stop: float) -> Severity:
    """Of a value that should be small."""
    return "stop" if value > stop else "warn" if value > warn else "ok"


def examine_texts(plan: SessionPlan, images: int = IMAGES) -> list[Finding]:
    """What the references alone tell: no model is loaded."""
    split = plan.train_split
    rows = np.unique(np.linspace(0, len(split) - 1, min(images, len(split))).astype(int)).tolist()
    references = {split.ids[i]: list(split.captions[i]) for i in rows}
    texts = [text for captions in references.values() for text in captions]
    tokenizer = plan.parts.tokenizer
    encoded = tokenizer.encode_batch(texts)
    return [
        _round_trip(tokenizer, plan.words, plan.parts.blueprint.config, texts, encoded),
        _ends(tokenizer, encoded),
        _room(plan, encoded),
        *_frequencies(plan, references),
        *_reward_of_references(plan, references),
    ]


def _round_trip(
    tokenizer: CaptionTokenizer,
    words: Words,
    config: CaptionerConfig,
    texts: list[str],
    encoded: list[list[int]],
) -> Finding:
    """Whether the model can write the references, and their words come back from their ids."""
    n, never = len(texts), _never_written(config)
    lost = [t for t, ids in zip(texts, encoded, strict=True) if never.intersection(ids)]
    if lost:
        said = f"{len(lost)} of {n} references need ids that the model has no word for, such as "
        advice = "config.model.lm and the tokenizer beside it do not belong together"
        return Finding("tokenizer", "stop", f"{said}{lost[0]!r}", advice)
    back = [(text, tokenizer.decode(ids)) for text, ids in zip(texts, encoded, strict=True)]
    changed = [(text, again) for text, again in back if words(again) != words(text)]
    said = f"{n - len(changed)} of {n} references keep their words"
    if changed:
        said += f" through the tokenizer; {changed[0][0]!r} comes back as {changed[0][1]!r}"
    if rest := sum(again != text.strip() for text, again in back) - len(changed):
        said += f"; {rest} come back with other spaces, case or accents"
    if tokenizer.ends.chat_template:
        said += "; its chat template is not used: a caption is no turn of a conversation"
    advice = "config.model.lm needs a tokenizer that knows the words of the captions"
    return Finding("tokenizer", _at_most(len(changed) / n, 0, 0.05), said, advice)


def _never_written(config: CaptionerConfig) -> set[int]:
    """The ids that no policy writes: rows without a word."""
    return {i for first, stop in config.wordless for i in range(first, stop)}


def _ends(tokenizer: CaptionTokenizer, encoded: list[list[int]]) -> Finding:
    """Whether the references end as the policy may, and what else the model's files say of ends."""
    ends = tokenizer.ends
    first, *others = ends.eos_ids

    def is_whole(ids: list[int]) -> bool:
        return bool(ids) and ids[-1] == first and not set(ends.eos_ids).intersection(ids[:-1])

    whole = sum(map(is_whole, encoded))
    said = f"{whole} of {len(encoded)} encoded references end in EOS (id {first}) and have no other"
    if others:
        named = ", ".join(map(str, others))
        said += f"; {named} would end a caption too, and no reference ends so"
    said = "; ".join([said, *ends.unused, *ends.odd])
    if whole < len(encoded):
        advice = "captions without EOS teach a policy that never stops; repair the tokenizer in "
        return Finding("end", "stop", said, advice + "config.model.lm and train MLE again")
    advice = "the files in config.model.lm are of different tokenizers; copy or download them again"
    return Finding("end", "warn" if ends.odd else "ok", said, advice)


def _room(plan: SessionPlan, encoded: list[list[int]]) -> Finding:
    limit = plan.config.data.max_tokens
    long = sum(len(ids) > limit for ids in encoded) / len(encoded)
    longest = max(map(len, encoded))
    said = f"{long:.1%} of the references are longer than max_tokens={limit} (the longest: "
    advice = f"set --config.data.max_tokens={longest}, or 0 for what the captions need"
    return Finding("max_tokens", _at_most(long, 0.01, 0.25), f"{said}{longest})", advice)


def _frequencies(plan: SessionPlan, references: dict[int, list[str]]) -> list[Finding]:
    """A table counted over the training references knows every n-gram of theirs."""
    df = _table(plan)
    if df is None:
        return []
    texts = [plan.words(text) for captions in references.values() for text in captions]
    grams = {gram for words in texts for n in range(df.n) for gram in ngrams.of(words, n + 1)}
    unseen = sum(df.get(gram) == 0 for gram in grams) / max(1, len(grams))
    few = df.n_images < len(plan.train_split)
    said = (
        f"the table of {df.n_images} images ({df.name}) lacks {unseen:.1%} of {len(grams)} n-grams "
        f"of training references; the split has {len(plan.train_split)} images"
    )
    advice = "these are document frequencies of other captions; prepare the dataset again with "
    advice += "har_jax.prepare"
    return [Finding("df", "stop" if few else _at_most(unseen, 0, 0.005), said, advice)]


def _reward_of_references(plan: SessionPlan, references: dict[int, list[str]]) -> list[Finding]:
    """A reference as if it were a caption: of its image, of another one, and cut before its end."""
    assert plan.reward is not None
    ids = np.array(list(references), np.int64)
    own = [captions[0] for captions in references.values()]
    other = own[1:] + own[:1]
    captions = [[a, b, a] for a, b in zip(own, other, strict=True)]
    ended = np.tile([True, True, False], (len(ids), 1))
    try:
        reward, limit = plan.reward, Limit(plan.config.scst.reward_timeout)
        ask = functools.partial(reward.breakdown, ids, captions, ended)
        total, parts = limit.call(ask, lambda: reward.signature)
    except Exception as error:
        return [broken_reward(error)]
    mean_own, mean_other, mean_cut = total.astype(np.float64).mean(axis=0)
    if not np.abs(total).max() > 0:
        text = f"every reward of {len(ids)} references, held against their own images, is 0"
        advice = "the reward and the references do not meet: see config.scst.reward and the dataset"
        return [Finding("reward", "stop", text, advice)]
    most = max(len(captions) for captions in references.values())
    floor = 0.5 * 10 / most  # a reference is one of the texts that it is compared with
    low = "cider_d" in parts and parts["cider_d"][:, 0].mean() < floor
    apart = mean_own > mean_other
    near = mean_other > 0.5 * mean_own
    severity: Severity = "stop" if low or not apart else "warn" if near else "ok"
    said = f"a reference earns {mean_own:.3f} on its own image and {mean_other:.3f} on another one"
    if low:
        said += f"; CIDEr-D of the former should be above {floor:.2f}"
    advice = "a reward must tell images apart: check the document frequencies, the image ids and "
    findings = [Finding("reward", severity, said, advice + "config.scst.reward")]
    if "cider_d" in parts:
        same = np.allclose(parts["cider_d"][:, 0], parts["cider_d"][:, 2])
        said = f"a reference earns {mean_own:.3f}, and {mean_cut:.3f} if it is cut before its EOS"
        advice = "captions that break off, as in 'with a', will cost nothing and will spread; set "
        advice += "--config.scst.eos=true"
        findings.append(Finding("eos", "warn" if same else "ok", said, advice))
    return findings


def broken_reward(error: Exception) -> Finding:
    """A reward that raises, or gives what is no finite number of the right shape."""
    if isinstance(error, UserError):
        return Finding("reward", "stop", str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename.rpartition('/')[2]}, line {last.lineno}"
    text = f"the reward raised {type(error).__name__}: {error} ({where})"
    return Finding("reward", "stop", text, "it must give a number for any caption")


def examine_policy(session: Session, trained: Params, images: int = IMAGES) -> Examination:
    """Captions of the MLE policy, sampled and scored by the training's own loss function.

    Args:
      trained: what `session.initial_params` gave.
    """
    plan, callback = session.plan, session.callback
    assert plan.reward is not None and callback is not None
    state = session.batches.get_state()
    found: dict[str, Figure] = {}
    samples: Images = []
    greedy: Images = []
    try:
        with jax.set_mesh(session.mesh):
            for number in range(math.ceil(images / plan.config.batch_size)):
                batch = put_batch(next(session.batches), session.mesh)
                key = jax.random.fold_in(jax.random.key(plan.config.seed), number)
                loss = jax.block_until_ready(session.look(trained, session.frozen, batch, key))
                if not math.isfinite(float(loss.figures["reward"].value)):  # in every process
                    return Examination([_broken_in_a_step(callback)], {})
                found = {k: merge(found[k], v) if found else v for k, v in loss.figures.items()}
                samples += rollout_words(plan, loss.arrays, "samples")
                greedy += rollout_words(plan, loss.arrays, "greedy")
    finally:
        session.batches.set_state(state)
    figures = {name: float(figure.value) for name, figure in found.items()}
    figures |= mean_over_processes(_of_words(plan, samples, greedy))
    return Examination(_judge(plan, figures), figures)


def _broken_in_a_step(callback: RewardCallback) -> Finding:
    try:
        callback.raise_if_failed()
    except Exception as error:
        return broken_reward(error)
    return Finding("reward", "stop", "the reward of the policy's captions is not finite")


def _of_words(plan: SessionPlan, samples: Images, greedy: Images) -> dict[str, float]:
    """Figures of captions by image."""
    flat = [caption for image in samples for caption in image]
    figures = {
        "bad_end_rate": health.bad_end_rate(flat),
        "repetition_rate": health.repetition_rate(flat),
        "distinct": float(np.mean([len(set(map(tuple, image))) / len(image) for image in samples])),
    }
    df = _table(plan)
    words = [word for kind in (samples, greedy) for image in kind for c in image for word in c]
    if df is not None:
        figures["unknown_words"] = sum(w not in df.vocabulary for w in words) / max(1, len(words))
    return figures


def _table(plan: SessionPlan) -> DocumentFrequency | None:
    assert plan.reward is not None
    part = plan.reward.parts.get("cider_d")
    return part.document_frequency if isinstance(part, CiderDReward) else None


def _judge(plan: SessionPlan, figures: Mapping[str, float]) -> list[Finding]:
    """Findings from the figures of the policy's captions."""
    config, f = plan.config, figures
    sample, greedy = f["reward"], f.get("reward_greedy")
    nothing = abs(sample) < 1e-3 and abs(greedy or 0) < 1e-3
    far = greedy is not None and greedy > 0 and sample < 0.25 * greedy
    beside = "" if greedy is None else f", greedy ones {greedy:.3f} (gap {greedy - sample:+.3f})"
    uniform = math.log(plan.parts.blueprint.config.lm.vocab_size)
    exact = config.model.dtype == "float32"
    findings = [
        Finding(
            "ended",
            _at_most(1 - f["ended"], 0.1, 0.5),
            f"{f['ended']:.1%} of the sampled captions reach EOS within {config.data.max_tokens} "
            "tokens",
            "was EOS dropped in the training of the MLE run, or is config.data.max_tokens too "
            "small? A reward that counts EOS sees unfinished captions",
        ),
        Finding(
            "policy",
            "stop" if nothing else "warn" if far else "ok",
            f"sampled captions earn {sample:.3f}{beside}",
            "the policy earns nothing that could be reinforced; train MLE longer"
            if nothing
            else "nearly every sample is worse than the greedy caption; train MLE longer, or use "
            "config.scst.baseline='leave_one_out'",
        ),
        Finding(
            "entropy",
            "warn" if f["entropy"] < 0.05 or f["entropy"] > 0.7 * uniform else "ok",
            f"entropy {f['entropy']:.2f} nats per token (a uniform policy: {uniform:.2f})",
            "near 0 all samples are one caption; near the uniform one the MLE run has not learnt",
        ),
        Finding(
            "temperature",
            _at_most(f["logp_drift"], *((0.05, 0.05) if exact else (0.5, 1.5))),
            f"log-probabilities of rollout and update differ by at most {f['logp_drift']:.1e}",
            "the samples are not drawn from the policy that is updated: temperature, weights or "
            "masks of the two differ",
        ),
    ]
    if "zero_advantage" in f:  # an objective of one's own may have no such figure
        said = (
            f"{f['zero_advantage']:.1%} of the samples have no advantage, {f['zero_images']:.1%} "
            f"of the images have none with any; {f['distinct']:.1%} of an image's "
            f"{config.scst.samples} samples differ"
        )
        advice = (
            "they earn what their baseline earns and teach nothing; raise config.scst.samples or "
            "config.scst.temperature, or look at the reward"
        )
        severity = _at_most(f["zero_advantage"], 0.5, 0.95)
        findings.insert(2, Finding("advantage", severity, said, advice))
    if config.scst.temperature != 1:
        text = f"samples are drawn and updated at temperature {config.scst.temperature:g}"
        advice = "greedy captions and evaluation are those of temperature 1; set it to 1"
        findings.append(Finding("temperature", "warn", text, advice))
    if "unknown_words" in f:
        severity = _at_most(f["unknown_words"], 0.02, 0.2)
        said = f"{f['unknown_words']:.1%} of the policy's words are in no training reference"
        advice = (
            "the policy's tokenizer spells other words than the references have: is it that of "
            "the MLE run, and the document frequencies those of this dataset?"
        )
        findings.append(Finding("vocabulary", severity, said, advice))
    return findings


def refuse(findings: Sequence[Finding], mode: str) -> None:
    """Logs what is not well.

    Raises:
      UserError: something has severity "stop", and `mode` is "on".
    """
    well = sum(finding.severity == "ok" for finding in findings)
    log.info("doctor: %d of %d findings are ok", well, len(findings))
    for finding in findings:
        if finding.severity != "ok":
            log.warning("doctor: %s", finding)
    stops = [finding for finding in findings if finding.severity == "stop"]
    if stops and mode == "on":
        told = " | ".join(f"{f.name}: {f.text}; {f.advice}".rstrip("; ") for f in stops)
        all_the_same = "--config.scst.doctor=warn starts all the same"
        raise UserError(f"the doctor refuses to start: {told}. {all_the_same}")
