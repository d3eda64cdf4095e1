"""The reward that a sum describes, for the images of a dataset's split: of its references, of its
document frequencies, and where a part asks for them, of its images as a CLIP sees them.

Training makes its reward here, and the reward for other people's trainers (`scorers.trl_reward`).
"""

from __future__ import annotations

from har_jax.data.dataset import Split, document_frequency_path
from har_jax.data.subset import Subset
from har_jax.errors import UserError
from har_jax.metrics.document_frequency import DocumentFrequency
from har_jax.metrics.embedding_scores import KINDS
from har_jax.rewards import mix
from har_jax.rewards.contract import Reward
from har_jax.rewards.mix import MixedReward, Spec
from har_jax.text.words import Words


def split_reward(
    spec: Spec,
    split: Split,
    words: Words,
    *,
    eos: bool = True,
    clip: str = "",
    batch_size: int = 64,
    named: str = "config.scst.reward_clip",
) -> MixedReward:
    """The reward of `spec` (see `rewards.mix`), of the images of `split`.

    Args:
      words: what its parts count.
      eos: whether the end of a caption is a word to CIDEr-D.
      clip: HF directory of the CLIP of the part clip_score, or pac_score.
      batch_size: images or texts that it embeds at a time.
      named: what the user calls `clip`, for errors.

    Raises:
      UserError: a sum that cannot be read, a CLIP that has no part in it, two parts for the one
        CLIP, missing document frequencies, and see `mix.build`.
    """
    weights = mix.parse(spec)
    asked = [name for name in mix.BY_CLIP if name in weights]
    if len(asked) > 1:
        raise UserError(
            f"the reward {spec!r} has {' and '.join(asked)}, which are by CLIPs of different "
            "weights, and there is one CLIP; leave one of them out"
        )
    if clip and not asked:
        raise UserError(
            f"{named}={clip!r} has no part in the reward {spec!r}; add "
            f"{' or '.join(mix.BY_CLIP)} to it, or leave that out"
        )
    by_clip = None
    if clip:
        by_clip = _by_clip(clip, split, batch_size, asked[0])
    df = document_frequency(split, words) if "cider_d" in weights else None
    return mix.build(spec, df, split.references(), eos=eos, by_clip=by_clip, words=words)


def document_frequency(split: Split, words: Words) -> DocumentFrequency:
    """Of the references of a split, as `prepare` counted them; counted here of part of a split.

    Raises:
      UserError: the dataset has none.
    """
    if isinstance(split, Subset):  # low-resource: the references of other images are not there
        found = [[words(text) for text in texts] for texts in split.captions]
        name = f"{split.name}[{len(split)} images]"
        return DocumentFrequency.from_references(found, name=name, words_by=words.signature)
    path = document_frequency_path(split.directory, split.name)
    if not path.exists():
        raise UserError(
            f"{path} is missing: CIDEr-D needs the document frequencies of the training "
            "references; prepare the dataset again with har_jax.prepare"
        )
    return DocumentFrequency.load(path)


def _by_clip(directory: str, split: Split, batch_size: int, part: str) -> Reward:
    from har_jax.scorers.clip_reward import ClipScoreReward  # JAX, which the others do without

    kind = next(kind for kind in KINDS.values() if kind.part == part)
    return ClipScoreReward(directory, split, batch_size=batch_size, kind=kind)
