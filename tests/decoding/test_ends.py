"""Captions that begin without BOS, and that any of several ids may end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.decoding import DecodePlan, decode
from har_jax.decoding.beam import beam_search
from har_jax.models.logprobs import length_mask
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.mix import MixedReward
from tests.helpers import images, small_captioner

ENDS = (2, 5, 11)
T = 7


def prefilled(captioner, b=6):
    return jax.jit(lambda x: captioner.prefill(captioner.project(captioner.encode(x))))(images(b))


@pytest.fixture(scope="module")
def captioner():
    return small_captioner(eos_ids=ENDS, bos_id=None)


def test_greedy_captions_equal_brute_force(captioner):
    """Argmax of a full forward pass, until any of the ends; the first one fills what follows."""
    cache = prefilled(captioner)
    found = jax.jit(lambda: decode(captioner, cache, DecodePlan(T)))().greedy
    logits = jax.jit(captioner.logits)
    for i in range(6):
        tokens = jnp.zeros((6, 1, T), jnp.int32)
        for t in range(T):
            choice = int(jnp.argmax(logits(cache, tokens)[i, 0, t]))
            tokens = tokens.at[i, 0, t].set(choice)
            if choice in ENDS:
                break
        written = np.asarray(tokens[i, 0])[: t + 1]
        assert found.lengths[i, 0] == len(written)
        np.testing.assert_array_equal(found.tokens[i, 0, : t + 1], written)
        assert (found.tokens[i, 0, t + 1 :] == ENDS[0]).all()


def test_samples_and_beams_end_at_the_first_of_any(captioner):
    cache = prefilled(captioner)
    plan = DecodePlan(T, samples=30)
    rollout = jax.jit(lambda key: decode(captioner, cache, plan, key))(jax.random.key(1))
    beams = jax.jit(lambda: beam_search(captioner, cache, beams=4, max_tokens=T))()
    seen = set()
    for captions in (rollout.together, beams):
        tokens, lengths = np.asarray(captions.tokens), np.asarray(captions.lengths)
        for row, length in zip(tokens.reshape(-1, T), lengths.ravel(), strict=True):
            where = np.flatnonzero(np.isin(row, ENDS))
            assert length == (where[0] + 1 if len(where) else T)
            assert (row[length:] == ENDS[0]).all()
            seen |= {int(row[where[0]])} if len(where) else set()
    assert seen == set(ENDS), "the test shows nothing"
    # Beams are scored as the captioner scores them.
    logp = jax.jit(captioner.score)(cache, beams.tokens) * length_mask(beams.lengths, T)
    np.testing.assert_allclose(logp, beams.logp, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"scan_layers": True}, {"remat": "full"}])
def test_a_prefix_of_one_token(changes):
    """A pooled projector may make a single visual token; without BOS nothing comes before it."""
    captioner = small_captioner(bos_id=None, projector="pooled", prefix_tokens=1, **changes)
    cache = prefilled(captioner)
    assert cache.kv[0].length == 0
    rollout = jax.jit(lambda key: decode(captioner, cache, DecodePlan(T, samples=3), key))(
        jax.random.key(0)
    )
    written = rollout.together
    mask = length_mask(written.lengths, T)
    assert 0.2 < float(mask.mean()) <= 1
    logp = jax.jit(captioner.score)(cache, written.tokens) * mask
    np.testing.assert_allclose(logp, written.logp, atol=1e-4)
    assert len({tuple(row) for row in np.asarray(rollout.greedy.tokens)[:, 0].tolist()}) > 1

    def loss(scale):
        x = captioner.project(captioner.encode(images(6))) * scale
        return captioner.score(captioner.prefill(x), written.tokens).sum()

    assert np.isfinite(jax.jit(jax.grad(loss))(1.0))
    assert float(jax.jit(jax.grad(loss))(1.0)) != 0


def test_a_reward_knows_captions_that_ended_at_any():
    class Ended:
        signature = "ended"

        def __call__(self, image_ids, captions, ended):
            return ended.astype(np.float32)

    rows = [[[3, 5, 2], [3, 2, 2]], [[3, 4, 11], [3, 4, 6]]]
    lengths = [[2, 2], [3, 3]]
    seen = []
    callback = RewardCallback(
        MixedReward.single(Ended()), lambda ids: seen.append(ids) or "x", eos_ids=ENDS
    )
    rewards, _ = callback(np.array([1, 2]), jnp.array(rows), jnp.array(lengths))
    np.testing.assert_array_equal(rewards, [[1, 1], [1, 0]])
    callback.raise_if_failed()
    assert seen == [[3], [3], [3, 4], [3, 4, 6]]
