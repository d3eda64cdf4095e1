"""Beam search against exhaustive search, greedy decoding and its own scores."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.beam import beam_search
from har_jax.errors import UserError
from har_jax.models.logprobs import length_mask
from tests.helpers import images, jitted, long, small_captioner, small_lm


def prefix(captioner, b):
    return jitted(captioner, lambda c: c.prefill(c.project(c.encode(images(b)))))


def search(captioner, cache, **how):
    return jitted(captioner, lambda c: beam_search(c, cache, **how))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_caption(length_penalty):
    vocab, t, eos = 4, 3, 2
    captioner = small_captioner(vocab_size=vocab)
    cache = prefix(captioner, 3)
    rows, lengths = [], []
    for row in itertools.product(range(vocab), repeat=t):
        end = row.index(eos) + 1 if eos in row else t
        if all(x == eos for x in row[end:]):
            rows.append(row)
            lengths.append(end)
    tokens = jnp.broadcast_to(jnp.asarray(rows, jnp.int32), (3, len(rows), t))
    mask = length_mask(jnp.broadcast_to(jnp.asarray(lengths), (3, len(rows))), t)
    score = jnp.sum(jitted(captioner, lambda c: c.score(cache, tokens)) * mask, axis=-1)
    score = np.asarray(score / np.asarray(lengths) ** length_penalty)
    found = search(captioner, cache, beams=vocab**t, max_tokens=t, length_penalty=length_penalty)
    for b in range(3):
        best = rows[int(np.argmax(score[b]))]
        assert tuple(np.asarray(found.tokens[b, 0])) == best
        # All captions are there, in the order of their scores.
        order = np.sort(score[b])[::-1]
        mine = np.asarray(jnp.sum(found.logp[b], axis=-1) / found.lengths[b] ** length_penalty)
        np.testing.assert_allclose(mine[: len(order)], order, atol=1e-4)


def test_one_beam_is_greedy():
    captioner = small_captioner()
    cache = prefix(captioner, 4)
    greedy = jitted(captioner, lambda c: decode(c, cache, DecodePlan(6)).greedy)
    found = search(captioner, cache, beams=1, max_tokens=6)
    np.testing.assert_array_equal(found.tokens, greedy.tokens)
    np.testing.assert_array_equal(found.lengths, greedy.lengths)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "qwen3", *long(["llama", "smollm3"])])
def test_beams_report_their_log_probability(family):
    captioner = small_captioner(lm=small_lm(family))
    cache = prefix(captioner, 2)
    found = search(captioner, cache, beams=4, max_tokens=6)
    mask = length_mask(found.lengths, 6)
    score = jitted(captioner, lambda c: c.score(cache, found.tokens))
    np.testing.assert_allclose(found.logp, score * mask, atol=1e-4)
    texts = {tuple(row) for row in np.asarray(found.tokens[0])}
    assert len(texts) == 4


def test_no_beams_is_an_error():
    captioner = small_captioner()
    with pytest.raises(UserError, match="beams is 0"):
        beam_search(captioner, prefix(captioner, 1), beams=0, max_tokens=3)
