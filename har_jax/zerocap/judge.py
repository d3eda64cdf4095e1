"""CLIP's opinion of candidates: cosines of images and of texts that differ in their last token.

Three things make it cheap, and none changes a value. A candidate is embedded once for a word, and
not in each of the iterations (`cos_nv` remembers it). Texts of one beam begin alike and CLIP's text
tower is causal, so the beginning is read once and each candidate adds its own two or three tokens.
And a token that begins with a space is a word of CLIP's by itself whatever stands before it, so
the crossing from GPT-2's tokens to CLIP's is a table for all but a few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from har_jax.models.attention import KV, KVCache
from har_jax.models.encoders.clip import unit
from har_jax.models.functional import Params
from har_jax.scorers.clip import ClipFiles
from har_jax.text.tokenizer import ClipTokenizer
from har_jax.types import Array, Float, Int
from har_jax.zerocap.vocabulary import Vocabulary

_WIDTHS = (2, 4)
"""Own tokens of a text that are computed together; texts with more are read whole."""
_PREFIX_STEP = 32  # prefixes are padded to a multiple of it: each length compiles anew
_SMALLEST_BATCH = 64  # of texts that are read whole
_REMEMBERED = 1 << 18  # texts, at most, whose tokens are kept


@dataclasses.dataclass(frozen=True)
class Endings:
    """Texts of N beams in CLIP's tokens: what follows the first `start_nc` of each beam's prefix,
    with the ids of the language model that they came of; V where there is none."""

    start_nc: Int[np.ndarray, "N C"]
    tokens_nct: Int[np.ndarray, "N C T"]
    ids_nc: Int[np.ndarray, "N C"]


@dataclasses.dataclass(frozen=True)
class Wholes:
    """The texts that are better read from their beginning, of any beam; V where there is none."""

    row_m: Int[np.ndarray, " M"]
    tokens_ml: Int[np.ndarray, "M L"]
    ids_m: Int[np.ndarray, " M"]


class Word(NamedTuple):
    """A word that is being chosen: the texts of all beams so far, as CLIP's text tower has read
    them, and the images that they are about. Rows beyond `beginnings` are padding."""

    beginnings: Sequence[str]
    rows: list[list[int]]  # the beginnings in CLIP's tokens
    prefix: KVCache
    image_ne: Float[Array, "N E"]


class Crossing:
    """From the language model's tokens to CLIP's, on the host.

    Attributes:
      size: of the language model's vocabulary.
    """

    def __init__(self, tokenize: ClipTokenizer, vocabulary: Vocabulary):
        self._tokenize, self._vocabulary = tokenize, vocabulary
        self.size = vocabulary.size
        words = self._tokenize.words(vocabulary.texts)
        self._spaced_v = np.array([text.startswith(" ") for text in vocabulary.texts])
        # What each token adds, up to EOS: right as it stands for those with a space before them.
        self._length_v = np.array([len(ids) + 1 for ids in words])
        self._rest_vt = self._padded([[*ids, self._tokenize.eos_id] for ids in words])
        self._known: dict[str, list[int]] = {}

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        """CLIP's tokens of texts, put together from what stands before their last space, which no
        token crosses, and what stands behind it: the same few over and over."""
        halves = [text.rpartition(" ") for text in texts]
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = list(
            {part for first, _, last in halves for part in (first, last)} - self._known.keys()
        )
        self._known.update(zip(new, self._tokenize.words(new), strict=True))
        return [[*self._known[first], *self._known[last]] for first, _, last in halves]

    def prefixes(self, texts: Sequence[str]) -> tuple[list[list[int]], Int[np.ndarray, "N P"]]:
        """The beginnings of texts in CLIP's tokens, without EOS; and padded."""
        rows = [[self._tokenize.bos_id, *ids] for ids in self._tokenize.words(texts)]
        rows = [row[: self._tokenize.context_length - 1] for row in rows]
        longest = max(map(len, rows))
        length = min(-(-longest // _PREFIX_STEP) * _PREFIX_STEP, self._tokenize.context_length)
        return rows, self._padded(rows, length)

    def texts(
        self, beginnings: Sequence[str], rows: list[list[int]], ids_nc: np.ndarray
    ) -> Iterator[Endings | Wholes]:
        """Each beginning with each of its candidates: in groups that end alike, and the rest.

        Args:
          beginnings: N texts.
          rows: of `prefixes`.
          ids_nc: candidates, −1 where none is asked for.
        """
        start_nc, own_nct, length_nc = self._parted(beginnings, rows, ids_nc)
        left_nc, shortest = ids_nc >= 0, 0
        for width in _WIDTHS:
            member_nc = (length_nc > shortest) & (length_nc <= width)
            shortest = width
            most, count = int(member_nc.sum(axis=1).max(initial=0)), int(member_nc.sum())
            # Where few beams have many of them, most places of a group would stand empty.
            whole = _size(count) * (int(start_nc[member_nc].max(initial=0)) + width)
            if not most or whole < len(rows) * _size(most) * width:
                continue
            left_nc &= ~member_nc
            order = np.argsort(~member_nc, axis=1, kind="stable")[:, : _size(most)]
            chosen = np.take_along_axis(member_nc, order, axis=1)
            yield Endings(
                np.take_along_axis(start_nc, order, axis=1),
                np.take_along_axis(own_nct, order[..., None], axis=1)[..., :width],
                np.where(chosen, np.take_along_axis(ids_nc, order, axis=1), self.size),
            )
        if left_nc.any():
            yield self._wholes(rows, ids_nc, left_nc, start_nc, own_nct)

    def _parted(
        self, beginnings: Sequence[str], rows: list[list[int]], ids_nc: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each text: how many tokens it shares with its beam's prefix, the others, and how many
        these are, EOS among them."""
        limit, eos_id = self._tokenize.context_length, self._tokenize.eos_id
        start_nc = np.repeat([[len(row)] for row in rows], ids_nc.shape[1], axis=1)
        length_nc = np.where(ids_nc < 0, 0, self._length_v[ids_nc])
        # 1. Those that begin a word of their own, and fit: what they add is in the table.
        whole_nc = (ids_nc >= 0) & ~(self._spaced_v[ids_nc] & (start_nc + length_nc <= limit))
        # 2. The others may change the word before them: tokenised whole, then cut where they part.
        places = np.argwhere(whole_nc)
        whole = [beginnings[i] + self._vocabulary.texts[ids_nc[i, j]] for i, j in places.tolist()]
        parted: list[list[int]] = []
        for (i, j), words in zip(places.tolist(), self._words(whole), strict=True):
            ids = [self._tokenize.bos_id, *words[: limit - 2], eos_id]
            start_nc[i, j] = _common(rows[i], ids)
            parted.append(ids[start_nc[i, j] :])
            length_nc[i, j] = len(parted[-1])
        longest = max(*_WIDTHS, int(length_nc.max(initial=0)))
        own_nct = np.full((*ids_nc.shape, longest), eos_id, np.int32)
        table = self._rest_vt[ids_nc][..., :longest]
        own_nct[..., : table.shape[2]] = table
        own_nct[places[:, 0], places[:, 1]] = self._padded(parted, longest)
        return start_nc, own_nct, length_nc

    def _wholes(
        self,
        rows: list[list[int]],
        ids_nc: np.ndarray,
        left_nc: np.ndarray,
        start_nc: np.ndarray,
        own_nct: np.ndarray,
    ) -> Wholes:
        row_m, at_m = np.nonzero(left_nc)
        starts, owns = start_nc[row_m, at_m].tolist(), own_nct[row_m, at_m].tolist()
        limit = self._tokenize.context_length
        texts = [
            [*rows[i][:n], *own][:limit]
            for i, n, own in zip(row_m.tolist(), starts, owns, strict=True)
        ]
        # EOS fills what a text leaves free, so nothing but its own EOS is cut off here.
        longest = max(text.index(self._tokenize.eos_id) for text in texts) + 1
        length = min(-(-longest // _PREFIX_STEP) * _PREFIX_STEP, limit)
        size = max(_SMALLEST_BATCH, _size(len(texts)))
        lacking = (0, size - len(texts))
        tokens = self._padded([text[:length] for text in texts], length)
        return Wholes(
            np.pad(row_m, lacking),
            np.pad(tokens, (lacking, (0, 0)), constant_values=self._tokenize.eos_id),
            np.pad(ids_nc[row_m, at_m], lacking, constant_values=self.size),
        )

    def _padded(self, rows: Sequence[Sequence[int]], width: int | None = None) -> np.ndarray:
        """int32 [rows, width], EOS behind what there is."""
        width = max(map(len, rows), default=0) if width is None else width
        found = np.full((len(rows), width), self._tokenize.eos_id, np.int32)
        for row, ids in zip(found, rows, strict=True):
            row[: len(ids)] = ids
        return found


def _common(row: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    n = min(len(row), len(other))
    return next((k for k in range(n) if row[k] != other[k]), n)


def _size(count: int) -> int:
    """4, 16, 64, 256, …: few sizes, since each is compiled."""
    size = 4
    while size < count:
        size *= 4
    return size


class Judge:
    """CLIP's text tower over the candidates of a language model.

    Args:
      clip: the CLIP that guides.
      rows: beams at a time, of all images together; fewer are padded.
      tokens_at_once: of texts that are computed together; bounds memory.
    """

    def __init__(
        self, clip: ClipFiles, vocabulary: Vocabulary, rows: int, *, tokens_at_once: int = 1 << 14
    ):
        self._clip, self.crossing, self._rows = clip, Crossing(clip.tokenize, vocabulary), rows
        structure = clip.structure("text")
        self._params = clip.load("text")

        def prefill(params: Params, tokens_np: Array) -> KVCache:
            return structure.merge(params).prefill(tokens_np)

        def judge(
            params: Params,
            prefix: KVCache,
            image_ne: Float[Array, "N E"],
            start_nc: Int[Array, "N C"],
            tokens_nct: Int[Array, "N C T"],
            ids_nc: Int[Array, "N C"],
            cos_nv: Float[Array, "N V"],
            used: Int[Array, ""],
        ) -> Float[Array, "N V"]:
            tower = structure.merge(params)
            n, c, t = tokens_nct.shape
            size = min(n, max(1, tokens_at_once // (c * t)))

            def rows(i: Array, cos_nv: Array) -> Array:
                # The last rows begin where a whole `size` of them is left: some are done twice.
                at_n = jnp.minimum(i * size, n - size) + jnp.arange(size)
                kv = tuple(KV(x.k[at_n], x.v[at_n]) for x in prefix)
                vectors_nce = unit(tower.embed_after(kv, start_nc[at_n], tokens_nct[at_n]))
                cos_nc = jnp.einsum("nce,ne->nc", vectors_nce, image_ne[at_n])
                return cos_nv.at[at_n[:, None], ids_nc[at_n]].set(cos_nc, mode="drop")

            return jax.lax.fori_loop(0, -(-used // size), rows, cos_nv)

        def judge_whole(
            params: Params,
            image_ne: Float[Array, "N E"],
            row_m: Int[Array, " M"],
            tokens_ml: Int[Array, "M L"],
            ids_m: Int[Array, " M"],
            cos_nv: Float[Array, "N V"],
        ) -> Float[Array, "N V"]:
            tower = structure.merge(params)
            size = max(1, tokens_at_once // tokens_ml.shape[1])
            vectors_me = jax.lax.map(
                lambda tokens_l: tower.embed(tokens_l[None])[0], tokens_ml, batch_size=size
            )
            cos_m = jnp.einsum("me,me->m", unit(vectors_me), image_ne[row_m])
            return cos_nv.at[row_m, ids_m].set(cos_m, mode="drop")

        def embed(params: Params, tokens_nt: Array) -> Float[Array, "N E"]:
            return unit(structure.merge(params).embed(tokens_nt))

        self._prefill, self._embed = jax.jit(prefill), jax.jit(embed)
        self._judge = jax.jit(judge, donate_argnames="cos_nv")
        self._judge_whole = jax.jit(judge_whole, donate_argnames="cos_nv")

    def begin(
        self, beginnings: Sequence[str], image_ne: Float[Array, "n E"]
    ) -> tuple[Word, Float[Array, "N V"]]:
        """What is the same for all candidates of a word, and their cosines: none is known yet."""
        rows, prefix_np = self.crossing.prefixes(beginnings)
        lacking = ((0, self._rows - len(beginnings)), (0, 0))
        prefix = self._prefill(self._params, np.pad(prefix_np, lacking, mode="edge"))
        word = Word(beginnings, rows, prefix, jnp.pad(image_ne, lacking))
        return word, jnp.full((self._rows, self.crossing.size), jnp.nan)

    def fill(
        self, cos_nv: Float[Array, "N V"], word: Word, ids_nc: Int[np.ndarray, "n C"]
    ) -> Float[Array, "N V"]:
        """`cos_nv` with the cosine of image i and `beginnings[i]` + each candidate, where it was
        NaN; what is known already is not computed again."""
        used = len(word.beginnings)
        known_nc = ~np.isnan(np.asarray(jnp.take_along_axis(cos_nv[:used], ids_nc, axis=1)))
        ids_nc = np.where(known_nc, -1, ids_nc)
        for texts in self.crossing.texts(word.beginnings, word.rows, ids_nc):
            if isinstance(texts, Wholes):
                own = (texts.row_m, texts.tokens_ml, texts.ids_m)
                cos_nv = self._judge_whole(self._params, word.image_ne, *own, cos_nv)
                continue
            # One shape for all numbers of beams; of the added ones nothing is computed.
            own = (
                np.pad(x, [(0, self._rows - used), *[(0, 0)] * (x.ndim - 1)], constant_values=fill)
                for x, fill in (
                    (texts.start_nc, 0),
                    (texts.tokens_nct, 0),
                    (texts.ids_nc, self.crossing.size),
                )
            )
            cos_nv = self._judge(self._params, word.prefix, word.image_ne, *own, cos_nv, used)
        return cos_nv

    def cosines(
        self, texts: Sequence[Sequence[str]], image_be: Float[Array, "B E"]
    ) -> Float[np.ndarray, "B K"]:
        """Of each image and each of its K texts, read as they are."""
        rows = self._clip.tokenize([text for group in texts for text in group])
        longest = int((rows == self._clip.tokenize.eos_id).argmax(axis=1).max()) + 1
        rows = rows[:, : -(-longest // _PREFIX_STEP) * _PREFIX_STEP]
        vectors = self._embed(self._params, rows).reshape(len(texts), len(texts[0]), -1)
        return np.asarray(jnp.einsum("bke,be->bk", vectors, image_be))
