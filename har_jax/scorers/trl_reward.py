"""Our rewards for TRL's trainers: `har_jax.rewards.trl`.

    reward = har_jax.rewards.trl("cider_d + 0.5*bleu", "data/coco")
    trainer = trl.GRPOTrainer(model, reward_funcs=reward, train_dataset=rows, ...)

TRL calls a reward with lists of one entry per completion: the prompts, the completions, their token
ids, and the columns of its dataset (`trl.GRPOTrainer`, `reward_funcs`). One of these names the
image, or holds its references. TRL itself is not imported here.
"""

from __future__ import annotations

import numbers
import os
import pathlib
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from har_jax.data.dataset import open_split, words_of
from har_jax.errors import UserError
from har_jax.ids import Id, numbered, read_id
from har_jax.metrics.document_frequency import DocumentFrequency
from har_jax.metrics.on_texts import texts_of
from har_jax.metrics.word_lists import refuse_text_of_list
from har_jax.rewards import mix
from har_jax.rewards.mix import MixedReward, Spec
from har_jax.scorers.split_reward import split_reward
from har_jax.settings import CountOrZero, checked_number
from har_jax.text.words import PTB, Words, find_words

Dataset = str | os.PathLike[str] | Mapping[Any, Sequence[str]]
REFERENCES = "references"
"""The column of references, where no dataset is given."""


def trl(
    reward: Spec,
    dataset: Dataset | None = None,
    *,
    split: str = "train",
    image_id: str = "image_id",
    eos_ids: int | Collection[int] = (),
    eos: bool = True,
    clip: str = "",
    words: str = "",
    document_frequency: DocumentFrequency | str | os.PathLike[str] | None = None,
) -> TrlReward:
    """A reward function for `trl.GRPOTrainer` and its like.

    Args:
      reward: a sum such as "cider_d + 0.5*bleu" (`rewards.mix`), as `config.scst.reward` has it.
      dataset: the directory of a dataset that `prepare` made; or {image id: [references]}; or None,
        where each row has its own `references`, a list of texts.
      split: of the directory.
      image_id: the column that names the image, by its id; of a directory also by its file's name.
      eos_ids: the ids that end a completion of the policy (its tokenizer's `eos_token_id`, or
        several). With them the end is a word of CIDEr-D only where a completion reached it, which
        keeps captions from breaking off; without, every completion counts as ended.
      eos: whether CIDEr-D counts the end as a word at all.
      clip: HF directory of the CLIP of the part clip_score, or pac_score, which need a directory of
        images.
      words: the name of those that are counted; "": the dataset's own, or PTB's.
      document_frequency: of CIDEr-D, or the file of it that `prepare` wrote. Counted over the
        references where they are a mapping; needed where each row has its own.

    Raises:
      UserError: a sum that cannot be read, no such dataset, an image without references, or
        anything that a part needs and is not given.
    """
    parts = mix.parse(reward)
    how: dict[str, Any] = {"image_id": image_id, "eos_ids": _ids(eos_ids)}
    if isinstance(dataset, str | os.PathLike):
        if document_frequency is not None:
            raise UserError("a dataset has document frequencies of its own; leave yours out")
        found = open_split(dataset, split)
        counted = words_of(found.directory, words)
        mixed = split_reward(reward, found, counted, eos=eos, clip=clip, named="clip")
        for part in mixed.parts.values():
            if isinstance(look := getattr(part, "look", None), Callable):
                look()  # at all images now, not at some in every step
        named = zip(found.filenames, found.ids, strict=True)
        numbers = {**{read_id(name): i for name, i in named if name}, **{i: i for i in found.ids}}
        return TrlReward(lambda _: mixed, mixed.signature, numbers, **how)
    if clip or any(name in parts for name in mix.BY_CLIP):
        raise UserError(
            "a CLIP needs the images, which a prepared dataset has; give its directory as `dataset`"
        )
    counted = find_words(words or PTB.name)
    df = document_frequency
    if isinstance(df, str | os.PathLike):
        df = DocumentFrequency.load(pathlib.Path(df))
    if isinstance(dataset, Mapping):
        written = {read_id(image): texts for image, texts in dataset.items()}
        numbers = numbered(written)
        truth = {numbers[image]: texts_of(image, texts) for image, texts in written.items()}
        if df is None and "cider_d" in parts:
            words_of_images = ([counted(text) for text in texts] for texts in truth.values())
            df = DocumentFrequency.from_references(words_of_images, words_by=counted.signature)
        mixed = mix.build(reward, df, truth, eos=eos, words=counted)
        return TrlReward(lambda _: mixed, mixed.signature, numbers, **how)
    return _by_rows(reward, df, counted, eos, how)


def _by_rows(
    reward: Spec, df: DocumentFrequency | None, words: Words, eos: bool, how: dict[str, Any]
) -> TrlReward:
    """Where each row has its own references."""
    if df is None and "cider_d" in mix.parse(reward):
        raise UserError(
            "cider_d counts document frequencies over the references of all training images; give "
            "`dataset`, or with references in each row document_frequency=DIR/"
            "document_frequency.train.npz, which `har_jax.prepare` writes"
        )

    def of_rows(truth: Mapping[int, Sequence[str]]) -> MixedReward:
        """Cooked anew for each batch, whose references are not known before."""
        return mix.build(reward, df, truth, eos=eos, words=words)

    return TrlReward(of_rows, of_rows({0: [""]}).signature, None, **how)


def _ids(given: Any) -> frozenset[int]:
    found = [given] if isinstance(given, numbers.Integral) else given
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise UserError(f"eos_ids is {reprlib.repr(given)}; give token ids, such as (2,)")
    return frozenset(int(checked_number("eos_ids", i, CountOrZero)) for i in found)


class TrlReward:
    """See `trl`. Safe to call from several threads.

    Attributes:
      signature: of the sum, what has to agree for two runs to have had the same reward.
    """

    __name__ = "har_jax"  # what TRL's logs call it: rewards/har_jax/mean

    def __init__(
        self,
        reward_of: Callable[[Mapping[int, Sequence[str]]], MixedReward],
        signature: str,
        numbers: Mapping[Id, int] | None,
        *,
        image_id: str,
        eos_ids: frozenset[int],
    ):
        self._reward_of, self._numbers = reward_of, numbers
        self._column = REFERENCES if numbers is None else image_id
        self._eos_ids = eos_ids
        self.signature = signature

    def __repr__(self) -> str:
        return f"TrlReward({self.signature!r}, column {self._column!r})"

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """The reward of each completion, a text or a chat of {"role", "content"}.

        Raises:
          UserError: no column for the image, an image without references, or completions that are
            neither texts nor chats.
        """
        del prompts
        if not isinstance(completions, Sequence):
            raise UserError(f"the completions are {reprlib.repr(completions)}; give a list of them")
        refuse_text_of_list(completions)
        texts = [_text(completion) for completion in completions]
        given = columns.get(self._column)
        if given is None or isinstance(given, str) or len(given) != len(texts):
            have = ", ".join(sorted(columns)) or "none"
            what = "names the image" if self._numbers is not None else "holds its references"
            raise UserError(
                f"the reward needs the column {self._column!r}, which {what}, with one entry per "
                f"completion; the trainer's dataset gave {have}; add it, or name yours with "
                "har_jax.rewards.trl(..., image_id=COLUMN)"
            )
        if not texts:
            return []
        if self._numbers is None:
            ids = list(range(len(texts)))
            reward = self._reward_of({i: texts_of(i, group) for i, group in enumerate(given)})
        else:
            ids, reward = [self._number(image) for image in given], self._reward_of({})
        ended = np.ones((len(texts), 1), bool)
        if self._eos_ids and completion_ids is not None:
            last = [next(reversed(row), None) for row in completion_ids]
            ended[:, 0] = [token in self._eos_ids for token in last]
        asked = np.asarray(ids, np.int64), [[text] for text in texts], ended
        values, parts = reward.breakdown(*asked)
        if log_metric is not None and len(parts) > 1:
            for name, of_part in parts.items():
                log_metric(f"reward_part/{name}", float(of_part.mean()))
        return values[:, 0].astype(float).tolist()

    def _number(self, image: Any) -> int:
        assert self._numbers is not None
        number = self._numbers.get(read_id(image))
        if number is None:
            raise UserError(
                f"the column {self._column!r} has the image {reprlib.repr(image)}, which the "
                f"reward's dataset of {len(set(self._numbers.values()))} images has not; give the "
                "dataset and the split that the trainer's rows are of"
            )
        return number


def _text(completion: Any) -> str:
    """What the policy wrote: of a chat, what its own messages hold."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and all(isinstance(m, Mapping) for m in completion):
        own = [m for m in completion if m.get("role", "assistant") == "assistant"]
        return " ".join(filter(None, (_content(m.get("content")) for m in own)))
    raise UserError(
        f"a completion is {reprlib.repr(completion)}, neither a text nor a list of messages"
    )


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):  # parts, of which pictures say nothing
        texts = (p.get("text") for p in content if isinstance(p, Mapping))
        return " ".join(text for text in texts if isinstance(text, str))
    raise UserError(f"a message's content is {reprlib.repr(content)}, neither a text nor parts")
