"""The two networks of ZeroCap from their directories, and captions of image features by them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from har_jax.data.protocols import Written
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.gpt2 import GPT2_FAMILY
from har_jax.models.attention import KVCache
from har_jax.models.functional import Params
from har_jax.scorers.clip import ClipFiles, ClipScorer
from har_jax.text.tokenizer import load_tokenizer
from har_jax.types import Array, Float, Int
from har_jax.zerocap import guidance, search
from har_jax.zerocap.guidance import Context, Steered
from har_jax.zerocap.judge import Judge
from har_jax.zerocap.settings import Guidance
from har_jax.zerocap.vocabulary import Vocabulary

_RECENT = 4  # tokens that repetition looks back over


class ZeroCap:
    """A CLIP and a GPT-2, frozen, and how the one guides the other.

    Making one reads configurations and tokenizers; weights are read when the first image comes.

    Args:
      clip, lm: Hugging Face directories of a CLIP and of a GPT-2, of any size.

    Raises:
      UserError: a directory that is not what it should be, a prompt or an end token that the
        language model cannot write, more candidates or beams than it has tokens.
    """

    def __init__(
        self,
        clip: str | os.PathLike[str],
        lm: str | os.PathLike[str],
        how: Guidance | None = None,
        *,
        batch_size: int = 8,
    ):
        self.how = how = how or Guidance()
        self.lm_path = hf_dir.resolve(lm)
        self.lm_config = GPT2_FAMILY.read_config(self.lm_path)
        self.clip = ClipFiles(clip)
        if not self.clip.towers.causal:
            raise UserError(
                f"{self.clip.path} is a {self.clip.towers.what}, whose text tower reads both ways; "
                "ZeroCap reads the beginning of a text once for all that may follow; give a CLIP"
            )
        self.vocabulary = Vocabulary(load_tokenizer(self.lm_path), self.lm_config.vocab_size)
        self.end_id = self.vocabulary.one_id(how.end_token)
        self._before = self.vocabulary.begin if how.bos else ()
        self.prompt_ids = [*self._before, *self.vocabulary.encode(how.prompt)]
        self._forbidden_v = self.vocabulary.forbidden_v(how.forbidden)
        self.batch_size = batch_size
        self._structure = GPT2_FAMILY.structure(self.lm_config, "float32")
        self._check()

    def _check(self) -> None:
        how, known = self.how, self.vocabulary.known
        for name in ("candidates", "beams"):
            if (value := getattr(how, name)) > known:
                raise UserError(
                    f"zerocap.{name} is {value}, but the language model has {known} tokens; "
                    "give fewer"
                )
        if len(self.prompt_ids) < 2:
            raise UserError(
                f"zerocap.prompt {how.prompt!r} is a single token, and guidance moves what was "
                "read before the last one; give a longer prompt, or bos=true"
            )
        length, room = len(self.prompt_ids) + how.max_tokens, self.lm_config.n_positions
        if length > room:
            raise UserError(
                f"zerocap.max_tokens is {how.max_tokens}, with the prompt {length} tokens, but the "
                f"language model has positions for {room}; give fewer"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the captions: the settings, and hashes of both networks. JSON-able."""
        lm = hf_dir.weights_fingerprint(self.lm_path)
        return {**dataclasses.asdict(self.how), "clip": self.clip.fingerprint, "lm": lm}

    def dependence(self, fingerprint: str) -> list[str]:
        """A warning where the CLIP that scores is the one that guides."""
        if fingerprint != self.clip.fingerprint:
            return []
        return [
            "CLIPScore is not independent: the CLIP that scores also guided every word; give "
            "another one with --score-clip=HF_DIR"
        ]

    @functools.cached_property
    def _params(self) -> Params:
        shapes, axes = self._structure.shapes, self._structure.logical_axes
        return GPT2_FAMILY.load_params(shapes, axes, self.lm_config, self.lm_path)

    @functools.cached_property
    def judge(self) -> Judge:
        rows = self.batch_size * (self.how.beams if self.how.method == "beam" else 1)
        return Judge(self.clip, self.vocabulary, rows)

    @functools.cached_property
    def _scorer(self) -> ClipScorer:
        return ClipScorer(self.clip, batch_size=self.batch_size)

    def features(self, images: Sequence[Any]) -> Float[np.ndarray, "B E"]:
        """Projected features of images (encoded bytes, paths or PIL images), not normalised: sums
        of them, with weights, are what visual arithmetic is made of."""
        return self._scorer.image_features(images)

    def write(self, features_be: Float[np.ndarray, "B E"], keys: Sequence[Array]) -> list[Written]:
        """A caption of each row of features, whatever its length.

        Args:
          keys: of random numbers, one for each row; only the sampled method draws.
        """
        image_be = features_be / np.linalg.norm(features_be, axis=-1, keepdims=True)
        if self.how.method == "sampled":
            return self._sample(jnp.asarray(image_be), jnp.stack(list(keys)))
        return self._search(jnp.asarray(image_be))

    # ------------------------------------------------------------------------------ beam search

    def _search(self, image_be: Float[Array, "B E"]) -> list[Written]:
        b, how = len(image_be), self.how
        cache, prompt = self._begin(b)
        beams: search.Beams | None = None
        tokens_nt = np.tile(prompt, (b, 1))
        for step in range(how.max_tokens):
            k = len(tokens_nt) // b
            image_ne = jnp.repeat(image_be, k, axis=0)
            t = jnp.asarray(tokens_nt.shape[1] - 1)
            last_n = jnp.asarray(tokens_nt[:, -1])
            log_p0_nv, written, ids_nc = self._look(self._params, last_n, t, cache)
            context = Context(last_n, t, cache, log_p0_nv)
            at = self._guide(context, self._texts(tokens_nt), image_ne, ids_nc)
            recent_nj = self._recent(tokens_nt, step)
            log_p_bkv = self._next(self._params, context, at.delta, recent_nj, jnp.asarray(step), b)
            if beams is None:
                beams = search.first(log_p_bkv, how.beams, self.end_id)
            else:
                beams = search.advance(beams, log_p_bkv, self.end_id)
            source_n = (np.asarray(beams.source_bk) + k * np.arange(b)[:, None]).ravel()
            cache = jax.tree.map(lambda x, of=source_n: x[of], written)
            chosen = np.asarray(beams.tokens_bkn[..., -1]).reshape(-1, 1)
            tokens_nt = np.concatenate([tokens_nt[source_n], chosen], axis=1)
            if bool(beams.ended_bk.all()):
                break
        assert beams is not None
        return self._best(beams, image_be)

    def _guide(
        self,
        context: Context,
        beginnings: Sequence[str],
        image_ne: Float[Array, "N E"],
        ids_nc: Int[Array, "N C"],
    ) -> Steered:
        """All iterations of one word, from its first candidates on. They stop where one of them
        brings up a candidate that CLIP has not judged for this word, and go on when it has."""
        n = len(beginnings)
        still = jax.tree.map(jnp.zeros_like, context.cache)
        word, cos_nv = self.judge.begin(beginnings, image_ne)
        cos_nv = self.judge.fill(cos_nv, word, np.asarray(ids_nc))
        candidates_nc = ids_nc[:, : self.how.candidates]
        at = Steered(still, jnp.asarray(0), candidates_nc, jnp.asarray(False))
        at = self._steer(self._params, context, cos_nv[:n], at)
        while at.missing:
            cos_nv = self.judge.fill(cos_nv, word, np.asarray(at.ids_nc))
            at = self._steer(self._params, context, cos_nv[:n], at)
        return at

    def _best(self, beams: search.Beams, image_be: Float[Array, "B E"]) -> list[Written]:
        """Of each image the text that CLIP finds nearest, read without the prompt; among equals the
        likelier one."""
        order_bk = np.argsort(-np.asarray(beams.scores_bk), axis=1, kind="stable")
        tokens, lengths = np.asarray(beams.tokens_bkn), np.asarray(beams.lengths_bk)
        ended = np.asarray(beams.ended_bk)
        texts = [
            [self.vocabulary.decode(tokens[b, k, : lengths[b, k]]) for k in order]
            for b, order in enumerate(order_bk)
        ]
        best_b = self.judge.cosines(texts, image_be).argmax(axis=1)
        return [
            Written(self._whole(texts[b][best]), bool(ended[b, order_bk[b, best]]))
            for b, best in enumerate(best_b)
        ]

    def _recent(self, tokens_nt: np.ndarray, step: int) -> Int[np.ndarray, "N J"]:
        """The last tokens of each text, −1 in front where there are fewer."""
        count = _RECENT if self.how.repetition_prompt else min(_RECENT, step)
        found = tokens_nt[:, tokens_nt.shape[1] - min(count, tokens_nt.shape[1]) :]
        lacking = ((0, 0), (_RECENT - found.shape[1], 0))
        return np.pad(found, lacking, constant_values=-1)

    def _whole(self, text: str) -> str:
        return (self.how.prompt * self.how.keep_prompt + text).strip()

    # ---------------------------------------------------------------------------------- sampling

    def _sample(self, image_be: Float[Array, "B E"], keys_b: Array) -> list[Written]:
        cache, prompt = self._begin(len(image_be))
        tokens_bt = np.tile(prompt, (len(image_be), 1))
        end_id = self.lm_config.eos_token_id
        ended_b = np.zeros(len(image_be), bool)
        for step in range(self.how.max_tokens):
            t, last_b = jnp.asarray(tokens_bt.shape[1] - 1), jnp.asarray(tokens_bt[:, -1])
            log_p0_bv, cache, ids_bc = self._look(self._params, last_b, t, cache)
            word, cos_bv = self.judge.begin(self._texts(tokens_bt), image_be)
            cos_bv = self.judge.fill(cos_bv, word, np.asarray(ids_bc))
            chosen_b = np.asarray(
                self._draw(keys_b, jnp.asarray(step), log_p0_bv, ids_bc, cos_bv[: len(ids_bc)])
            )
            if end_id is not None:
                chosen_b = np.where(ended_b, end_id, chosen_b)
                ended_b |= chosen_b == end_id
            tokens_bt = np.concatenate([tokens_bt, chosen_b[:, None]], axis=1)
            if ended_b.all():
                break
        new_bt = tokens_bt[:, len(prompt) :]
        texts = [self._whole(self.vocabulary.decode(row)) for row in new_bt]
        return [Written(text, bool(end)) for text, end in zip(texts, ended_b, strict=True)]

    # ----------------------------------------------------------------------------- compiled parts

    def _begin(self, b: int) -> tuple[KVCache, np.ndarray]:
        """Keys and values of all of the prompt but its last token, of B images; the prompt."""
        prompt = np.array(self.prompt_ids, np.int32)
        return self._prefill(self._params, np.tile(prompt[:-1], (b, 1))), prompt

    def _texts(self, tokens_nt: np.ndarray) -> list[str]:
        return [self.vocabulary.decode(row[len(self._before) :]) for row in tokens_nt]

    @functools.cached_property
    def _prefill(self) -> Any:
        def prefill(params: Params, tokens_nt: Int[Array, "N T"]) -> KVCache:
            lm = self._structure.merge(params)
            return lm.prefill(lm.embed(tokens_nt), room=self.how.max_tokens)[1]

        return jax.jit(prefill)

    @functools.cached_property
    def _look(self) -> Any:
        def look(params: Params, last_n: Array, t: Array, cache: KVCache) -> tuple:
            logits_nv, cache = self._read(params)(last_n, t, cache)
            ids_nc = jax.lax.top_k(logits_nv, self._asked)[1]
            return jax.nn.log_softmax(logits_nv), cache, ids_nc

        return jax.jit(look)

    @property
    def _asked(self) -> int:
        """How many tokens CLIP is asked about before the first iteration: a few more than there are
        candidates, since the later ones have some of their own."""
        how = self.how
        more = max(8, how.candidates // 8) if how.method == "beam" and how.iterations else 0
        return min(how.candidates + more, self.vocabulary.known)

    @functools.cached_property
    def _steer(self) -> Any:
        def steer(params: Params, context: Context, cos_nv: Array, at: Steered) -> Steered:
            return guidance.steer(self._read(params), self.how, context, cos_nv, at)

        return jax.jit(steer)

    @functools.cached_property
    def _next(self) -> Any:
        end_id, forbidden_v = self.end_id, self._forbidden_v

        def log_p(
            params: Params, context: Context, delta: KVCache, recent_nj: Array, step: Array, b: int
        ) -> Float[Array, "B K V"]:
            cache = guidance.added(context.cache, delta)
            logits_nv, _ = self._read(params)(context.last_n, context.t, cache)
            logits_nv = guidance.adjusted(logits_nv, recent_nj, step, self.how, end_id, forbidden_v)
            shape = (b, -1, logits_nv.shape[1])
            log_p_bkv = jax.nn.log_softmax(logits_nv).reshape(shape)
            return guidance.fused(log_p_bkv, context.log_p0_nv.reshape(shape), self.how)

        return jax.jit(log_p, static_argnums=5)

    @functools.cached_property
    def _draw(self) -> Any:
        def draw(
            keys_b: Array, step: Array, log_p0_bv: Array, ids_bc: Array, cos_bv: Array
        ) -> Int[Array, " B"]:
            cos_bc = jnp.take_along_axis(cos_bv, ids_bc, axis=1)
            log_p_bc = search.guided_log_p(log_p0_bv, ids_bc, cos_bc, self.how.clip_scale)
            keys: Any = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_b)
            return search.draw(keys, ids_bc, log_p_bc)

        return jax.jit(draw)

    def _read(self, params: Params) -> guidance.Read:
        """The language model, to be asked for its next token inside `jax.jit`."""
        return functools.partial(
            guidance.read, self._structure.merge(params), self.vocabulary.no_token_v
        )
