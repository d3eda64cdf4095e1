"""SCST's gradient against REINFORCE written by hand, and against the exact policy gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from har_jax.config import ScstConfig
from har_jax.decoding import DecodePlan, decode
from har_jax.models.captioner import Captioner
from har_jax.models.functional import split, structure_of
from har_jax.models.layouts import convert
from har_jax.models.logprobs import length_mask
from har_jax.objectives.experience import Experience
from har_jax.objectives.likelihood import make_mle_loss
from har_jax.objectives.policy_gradient import advantages, policy_gradient_loss
from har_jax.objectives.self_critical import make_scst_loss
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.mix import MixedReward
from har_jax.sharding import batch_sharding, make_mesh
from tests.helpers import images, jitted, long, small_captioner, small_config

T, K = 5, 3


class CountEven:
    """A reward that tells captions apart: the share of even ids, and the image's own weight."""

    signature = "count-even"

    def __init__(self):
        self.calls = 0

    def __call__(self, image_ids, captions, ended):
        self.calls += 1
        rows = [[sum(int(w) % 2 == 0 for w in c.split()) for c in row] for row in captions]
        return (np.asarray(rows, np.float32) + ended) * (1 + image_ids[:, None] % 3).astype("f4")


def text_of(ids):
    return " ".join(map(str, ids))


def reward_callback(mesh=None):
    return RewardCallback(
        MixedReward.single(CountEven()), text_of, eos_ids=[2], mesh=mesh, vocab_size=14
    )


def value_and_grad(loss_fn):
    """(loss, what it tells), gradient: as `training.step` takes them."""

    def value(params, batch, key):
        loss = loss_fn(params, batch, key)
        return loss.total / loss.weight, loss

    return jax.value_and_grad(value, has_aux=True)


def scst_loss(structure, callback, baseline="greedy"):
    return make_scst_loss(structure, ScstConfig(samples=K, baseline=baseline), T, callback)


def batch_of(b):
    return {"image": images(b), "image_id": jnp.arange(b, dtype=jnp.int32)}


@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_gradient_equals_hand_written_reinforce(baseline):
    captioner = small_captioner()
    structure, params = split(captioner)
    callback = reward_callback()
    loss_fn = scst_loss(structure, callback, baseline)
    batch, key = batch_of(4), jax.random.key(7)
    (_, loss), grads = jax.jit(value_and_grad(loss_fn))(params, batch, key)
    callback.raise_if_failed()
    kinds = ("samples",) if baseline == "leave_one_out" else ("greedy", "samples")
    tokens, lengths = (
        np.concatenate([loss.arrays[f"{kind}/{name}"] for kind in kinds], axis=1)
        for name in ("tokens", "lengths")
    )
    first = len(kinds) - 1  # no greedy row is written where the baseline needs none
    assert tokens.shape == (4, first + K, T)

    # By hand: rewards again on the host; one whole sequence at a time, no shared prefix, no cache.
    captions = [
        [text_of(row[: n - (row[n - 1] == 2)]) for row, n in zip(rows, ns, strict=True)]
        for rows, ns in zip(tokens, lengths, strict=True)
    ]
    last = np.take_along_axis(tokens, lengths[..., None] - 1, axis=2)[..., 0]
    rewards = CountEven()(np.arange(4), captions, last == 2)

    def sequence_logp(params, image, row, n):
        model = structure.merge(params)
        visual = model.project(model.encode(image[None]))
        bos = model.lm.embed(jnp.array([[1]]))
        x = jnp.concatenate([bos, visual, model.lm.embed(jnp.asarray(row[None, :-1]))], axis=1)
        hidden, _ = model.lm.prefill(x)
        logp = jax.nn.log_softmax(model.lm.logits(hidden[0, visual.shape[1] :]))
        return sum(jnp.where(t < n, logp[t, row[t]], 0) for t in range(T))

    grad_of = jax.jit(jax.grad(sequence_logp))
    expected = jax.tree.map(jnp.zeros_like, params)
    for b, k in itertools.product(range(4), range(first, first + K)):
        others = [rewards[b, j] for j in range(first, first + K) if j != k]
        base = rewards[b, 0] if baseline == "greedy" else np.mean(others)
        weight = -(rewards[b, k] - base) / (4 * K)
        one = grad_of(params, batch["image"][b], tokens[b, k], int(lengths[b, k]))
        expected = jax.tree.map(lambda a, g, w=weight: a + w * g, expected, one)

    assert np.std(rewards) > 0
    scale = max(float(jnp.abs(g).max()) for g in expected.values())
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, expected[name], atol=2e-5 * scale, err_msg=name)
    for name, gradient in grads.items():
        if name.startswith("vision."):
            assert not np.any(gradient), f"{name} is frozen"


def enumerate_captions(vocab, eos, t):
    """All captions of at most t tokens, EOS included where there is one: ids and lengths."""
    rows = []
    for row in itertools.product(range(vocab), repeat=t):
        end = row.index(eos) + 1 if eos in row else t
        if all(x == eos for x in row[end:]):
            rows.append((row, end))
    return np.array([r for r, _ in rows], np.int32), np.array([n for _, n in rows], np.int32)


def test_expectation_equals_the_exact_policy_gradient():
    """On two steps of a small vocabulary: Σ_y P(y) · (estimate from y) = ∇ Σ_y P(y) R(y)."""
    vocab, eos, t = 5, 2, 2
    captioner = small_captioner(vocab_size=vocab)
    structure, params = split(captioner)
    pixels = images(1)
    rows, lengths = enumerate_captions(vocab, eos, t)
    mask = length_mask(jnp.asarray(lengths)[None], t)
    rewards = jax.random.uniform(jax.random.key(0), (len(rows),)) * 3

    def logps(params):
        model = structure.merge(params)
        cache = model.prefill(model.project(model.encode(pixels)))
        return model.score(cache, jnp.asarray(rows)[None])

    def expected_reward(params):
        return jnp.sum(jnp.exp(jnp.sum(logps(params) * mask, axis=-1)) * rewards)

    p = jnp.exp(jnp.sum(jax.jit(logps)(params) * mask, axis=-1))[0]
    np.testing.assert_allclose(jnp.sum(p), 1, atol=1e-5)  # the enumeration is complete
    exact = jax.jit(jax.grad(expected_reward))(params)

    baseline = 1.234  # any constant leaves the expectation alone

    def expected_estimate(params):
        """The loss of each caption as if it alone had been drawn, weighted by its probability."""
        logp = logps(params)
        losses = [
            policy_gradient_loss(logp[:, i : i + 1], mask[:, i : i + 1], r[None, None] - baseline)
            for i, r in enumerate(rewards)
        ]
        return jnp.sum(jax.lax.stop_gradient(p) * jnp.stack(losses))

    estimate = jax.jit(jax.grad(expected_estimate))(params)
    scale = max(float(jnp.abs(g).max()) for g in exact.values())
    for name in params:
        np.testing.assert_allclose(-estimate[name], exact[name], atol=1e-5 * scale, err_msg=name)


def test_samples_follow_the_policy():
    """What the loop draws has the frequencies of the enumerated policy (five standard errors)."""
    vocab, eos, t, n = 5, 2, 2, 20_000
    captioner = small_captioner(vocab_size=vocab)
    rows, lengths = enumerate_captions(vocab, eos, t)
    cache = jitted(captioner, lambda c: c.prefill(c.project(c.encode(images(1)))))
    mask = length_mask(jnp.asarray(lengths)[None], t)
    score = jitted(captioner, lambda c: c.score(cache, jnp.asarray(rows)[None]))
    p = np.exp(np.sum(score * mask, axis=-1))[0]
    plan = DecodePlan(t, samples=n)
    rollout = jitted(captioner, lambda c: decode(c, cache, plan, jax.random.key(3)))
    code = lambda x: x[..., 0] * vocab + x[..., 1]  # noqa: E731
    counts = np.bincount(code(np.asarray(rollout.samples.tokens[0])), minlength=vocab**2)
    frequency = counts[code(rows)] / n
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9).all()


def test_leave_one_out_is_the_mean_of_the_others():
    rewards, greedy = jnp.asarray([[1.0, 2.0, 6.0]]), jnp.asarray([[9.0]])
    alone = Experience(None, rewards, {}, None, None)
    np.testing.assert_allclose(advantages(alone, "leave_one_out"), [[1 - 4, 2 - 3.5, 6 - 1.5]])
    beside = alone._replace(reward_greedy_b1=greedy)
    np.testing.assert_allclose(advantages(beside, "greedy"), [[-8, -7, -3]])
    # The mean of both baselines: (9 + 4) / 2, (9 + 3.5) / 2, (9 + 1.5) / 2.
    np.testing.assert_allclose(advantages(beside, "both"), [[1 - 6.5, 2 - 6.25, 6 - 5.25]])


def count_primitives(jaxpr, names):
    found = dict.fromkeys(names, 0)
    for equation in jaxpr.eqns:
        if equation.primitive.name in found:
            found[equation.primitive.name] += 1
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    for name, n in count_primitives(inner, names).items():
                        found[name] += n
    return found


def test_one_step_holds_one_loop_and_one_callback():
    """Differentiated and all: a single decode loop for both kinds of row, and the reward inside."""
    structure, params = split(small_captioner())
    callback = reward_callback()
    traced = jax.make_jaxpr(value_and_grad(scst_loss(structure, callback)))(
        params, batch_of(4), jax.random.key(0)
    )
    found = count_primitives(traced.jaxpr, ["while", "scan", "pure_callback"])
    assert found == {"while": 1, "scan": 0, "pure_callback": 1}
    loops = [e for e in traced.jaxpr.eqns if e.primitive.name == "while"]
    carried = {v.aval.shape for v in loops[0].outvars}
    assert (4, 1 + K, T) in carried  # the rows of the one loop: greedy and K samples


@pytest.mark.parametrize("layout", [*long([{}]), {"scan_layers": True}], ids=["plain", "scan"])
def test_eight_devices_give_the_same_gradient(layout):
    """In any layout of the decoder's parameters, too."""
    structure, params = split(small_captioner())
    batch, key = batch_of(8), jax.random.key(7)

    def run(loss_fn, params, batch):
        (value, loss), grads = jax.jit(value_and_grad(loss_fn))(params, batch, key)
        return value, loss.arrays, grads

    loss, arrays, grads = run(scst_loss(structure, reward_callback()), params, batch)
    mesh = make_mesh(2, 2, 2)
    other = structure_of(lambda: Captioner(small_config(**layout), rngs=nnx.Rngs(0)))
    move = functools.partial(convert, wanted=other.shapes)
    with jax.set_mesh(mesh):
        sharded = jax.jit(move, out_shardings=other.shardings(mesh))(params)
        loss_fn = scst_loss(other, reward_callback(mesh))
        loss8, arrays8, grads8 = run(loss_fn, sharded, jax.device_put(batch, batch_sharding(mesh)))
    np.testing.assert_array_equal(arrays["samples/tokens"], arrays8["samples/tokens"])
    np.testing.assert_allclose(loss, loss8, rtol=1e-5)
    grads8 = convert(jax.device_get(grads8), structure.shapes)
    for name, gradient in grads.items():
        scale = max(float(jnp.abs(gradient).max()), 1e-3)
        np.testing.assert_allclose(gradient, grads8[name], atol=1e-4 * scale, err_msg=name)


def test_mle_is_the_mean_negative_log_likelihood_of_real_tokens():
    captioner = small_captioner()
    structure, params = split(captioner)
    tokens = jax.random.randint(jax.random.key(5), (4, 3, T), 0, 14)
    lengths = jnp.asarray([[5, 3, 0], [1, 5, 2], [4, 4, 4], [0, 0, 1]], jnp.int32)
    batch = {**batch_of(4), "tokens": tokens, "lengths": lengths}
    loss = jax.jit(make_mle_loss(structure))(params, batch, jax.random.key(0))

    def score(c):
        return c.score(c.prefill(c.project(c.encode(batch["image"]))), tokens)

    logp = np.asarray(jitted(captioner, score))
    picked = [logp[b, r, t] for b in range(4) for r in range(3) for t in range(int(lengths[b, r]))]
    np.testing.assert_allclose(loss.total / loss.weight, -np.mean(picked), rtol=1e-5)
    assert loss.weight == loss.figures["tokens"].value == len(picked)
