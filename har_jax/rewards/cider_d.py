"""CIDEr-D against an image's references: the reward of SCST (Rennie et al., arXiv 1612.00563)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from har_jax.errors import UserError
from har_jax.metrics.cider_d import CiderD, DocumentFrequency
from har_jax.metrics.word_lists import refuse_text_of_list
from har_jax.rewards.contract import Ended, ImageIds, Texts, Values, check_captions
from har_jax.text.words import PTB, Words


class CiderDReward:
    """CIDEr-D in [0, 10] with document frequencies of the training references.

    With `eos` (the default) the end of a caption counts as a word, in references and in captions
    that reached it. Without, a caption that breaks off in "with a" loses nothing by it, and SCST
    learns to write such captions (arXiv 2305.12254).

    Args:
      document_frequency: counted over the *whole* training split.
      references: raw captions of every image that will be scored.
      eos: count the end as a word.
      words: what is counted of a caption.

    Raises:
      UserError: an image without references, one text for a list of them, or document frequencies
        of other words.
    """

    def __init__(
        self,
        document_frequency: DocumentFrequency,
        references: Mapping[int, Sequence[str]],
        *,
        eos: bool = True,
        words: Words = PTB,
    ):
        self.document_frequency = df = document_frequency
        if df.words_by != words.signature:
            raise UserError(
                f"the document frequencies {df.name!r} count the words of {df.words_by}, and the "
                f"reward those of {words.signature}; prepare the dataset again with "
                f"--words={words.name}"
            )
        self._words = words
        for texts in references.values():
            refuse_text_of_list(texts)
        of_images = {i: [words(text) for text in captions] for i, captions in references.items()}
        self._scorer = CiderD(df, of_images, eos=eos)
        self.signature = (
            f"CIDEr-D[n{df.n},s{self._scorer.sigma}]{'+eos' if eos else ''}"
            f"+df[{df.name},N={df.n_images},{df.fingerprint[:8]}]+{words.mark}"
        )

    def __call__(self, image_ids: ImageIds, captions: Texts, ended: Ended) -> Values:
        """See `contract.Reward`.

        Raises:
          UserError: an image without references, or a text for a list of captions.
        """
        check_captions(captions)
        words = [[self._words(text) for text in of_image] for of_image in captions]
        values = self._scorer.score(image_ids, words, ended)
        return values.reshape(ended.shape).astype(np.float32)  # B = 0 does not tell R there
