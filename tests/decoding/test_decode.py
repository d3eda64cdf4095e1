"""Decoding against teacher forcing, in other company, and against plain recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.sampling import draw, truncate
from har_jax.models.logprobs import length_mask
from tests.helpers import OTHER_FAMILIES, images, small_captioner, small_lm

T = 7


def prefix_of(captioner, pixels):
    return jax.jit(lambda x: captioner.prefill(captioner.project(captioner.encode(x))))(pixels)


def score_of(captioner, cache, tokens, **settings):
    return jax.jit(lambda c, t: captioner.score(c, t, **settings))(cache, tokens)


def rollout_of(captioner, pixels, plan, seed=0):
    cache = prefix_of(captioner, pixels)
    return cache, jax.jit(lambda c, k: decode(captioner, c, plan, k))(cache, jax.random.key(seed))


# In one layout or the other, with BOS or without.
FAMILIES = {
    family: {"lm": small_lm(family), "scan_layers": bool(i % 2), "bos_id": (1, None)[i % 2]}
    for i, family in enumerate(OTHER_FAMILIES)
}


PREFIXES = {"plain": {}, "pooled": {"projector": "pooled"}, "prompt": {"prompt_ids": (5, 9)}}
SCORED = {f"{name}-{t}": (own, t) for name, own in PREFIXES.items() for t in (1.0, 0.6)}
SCORED |= {name: (own, 1.0) for name, own in FAMILIES.items()}  # no decoder knows of a temperature


@pytest.mark.parametrize(("changes", "temperature"), SCORED.values(), ids=SCORED)
def test_score_equals_decode(changes, temperature):
    captioner = small_captioner(**changes)
    plan = DecodePlan(T, greedy=True, samples=3, temperature=temperature)
    cache, rollout = rollout_of(captioner, images(8), plan)
    written = rollout.together
    mask = length_mask(written.lengths, T)
    greedy = score_of(captioner, cache, rollout.greedy.tokens)
    sampled = score_of(captioner, cache, rollout.samples.tokens, temperature=temperature)
    logp = jnp.concatenate([greedy, sampled], axis=1) * mask
    assert 0.2 < float(mask.mean()) < 1  # some rows ended, some did not
    np.testing.assert_allclose(logp, written.logp, atol=1e-5)


def test_greedy_row_equals_greedy_alone():
    captioner = small_captioner()
    _, together = rollout_of(captioner, images(4), DecodePlan(T, samples=5))
    _, alone = rollout_of(captioner, images(4), DecodePlan(T))
    assert alone.samples is None and together.samples.tokens.shape == (4, 5, T)
    np.testing.assert_array_equal(together.greedy.tokens, alone.greedy.tokens)
    np.testing.assert_array_equal(together.greedy.lengths, alone.greedy.lengths)
    assert not np.array_equal(together.samples.tokens[:, :1], alone.greedy.tokens)


def test_greedy_equals_brute_force():
    """Argmax of a full forward pass, one token at a time, without any cache."""
    captioner = small_captioner()
    pixels = images(3)
    cache, rollout = rollout_of(captioner, pixels, DecodePlan(T))
    logits = jax.jit(captioner.logits)
    tokens = jnp.zeros((3, 1, T), jnp.int32)
    eos = captioner.config.eos_ids[0]
    done = np.zeros((3,), bool)
    for t in range(T):
        choice = jnp.argmax(logits(cache, tokens)[:, 0, t], axis=-1)
        choice = jnp.where(done, eos, choice)
        tokens = tokens.at[:, 0, t].set(choice)
        done |= np.asarray(choice) == eos
    np.testing.assert_array_equal(rollout.greedy.tokens, tokens)


def test_shared_prefix_equals_repeated_images():
    """R captions of one image score as R images with one caption each."""
    captioner = small_captioner()
    pixels = images(2)
    tokens = jax.random.randint(jax.random.key(5), (2, 3, T), 0, 14)
    shared = score_of(captioner, prefix_of(captioner, pixels), tokens)
    cache = prefix_of(captioner, jnp.repeat(pixels, 3, axis=0))
    alone = score_of(captioner, cache, tokens.reshape(6, 1, T)).reshape(2, 3, T)
    np.testing.assert_allclose(shared, alone, atol=1e-5)


def test_lengths_end_at_the_first_eos():
    captioner = small_captioner()
    eos = captioner.config.eos_ids[0]
    _, rollout = rollout_of(captioner, images(8), DecodePlan(T, samples=6))
    tokens, lengths = (np.asarray(x) for x in rollout.together[:2])
    for row, length in zip(tokens.reshape(-1, T), lengths.ravel(), strict=True):
        where = np.flatnonzero(row == eos)
        assert length == (where[0] + 1 if len(where) else T)
        assert (row[length:] == eos).all()


def test_draw_follows_softmax():
    """Frequencies over a vocabulary of several blocks, within five standard errors."""
    n = 200_000
    logits = 2 * jax.random.normal(jax.random.key(0), (300,))
    logits = logits.at[7].set(-jnp.inf)
    u = jax.random.uniform(jax.random.key(1), (n,))
    counts = np.bincount(draw(jnp.broadcast_to(logits, (n, 300)), u), minlength=300)
    p = np.asarray(jax.nn.softmax(logits))
    assert counts[7] == 0
    assert (np.abs(counts / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9).all()


@pytest.mark.parametrize("v", [1, 5, 128, 129, 300])
def test_draw_at_the_edges(v):
    """u = 0 and the largest u below 1 give possible tokens, even where most have no mass."""
    logits = jnp.full((v,), -jnp.inf).at[v // 2].set(0.0)
    for u in (0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))):
        assert int(draw(logits, jnp.float32(u))) == v // 2


def test_truncate_equals_transformers():
    import torch
    from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32) * 3
    ids = torch.zeros((6, 1), dtype=torch.long)
    for k in (1, 5, 50):
        expected = TopKLogitsWarper(k)(ids, torch.tensor(logits)).numpy()
        np.testing.assert_array_equal(truncate(jnp.asarray(logits), k, 1.0), expected)
    for p in (0.1, 0.5, 0.9):
        expected = TopPLogitsWarper(p)(ids, torch.tensor(logits)).numpy()
        np.testing.assert_array_equal(truncate(jnp.asarray(logits), 0, p), expected)
