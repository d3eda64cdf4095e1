"""The callback on one and on eight virtual devices: each row scored once, in place."""

import collections
import threading
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from har_jax.distributed import narrow
from har_jax.errors import UserError
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.mix import MixedReward, build
from har_jax.text import ptb

EOS = 2
MESHES = {
    "one": None,
    "data8": {"data": 8},
    "8x1x1": {"data": 8, "fsdp": 1, "tensor": 1},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "1x4x2": {"data": 1, "fsdp": 4, "tensor": 2},
    "1x1x8": {"data": 1, "fsdp": 1, "tensor": 8},
    "one's own": {"stage": 2, "fsdp": 2, "model": 2},
    "no batch axis": {"model": 8},
}
CALLS = {"data8": 8, "8x1x1": 8, "2x2x2": 4, "1x4x2": 4, "one's own": 2}  # else 1


def make_mesh(name):
    shape = MESHES[name]
    if shape is None:
        return None
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=auto)


def decode(ids):
    return " ".join(map(str, ids))


class Recorder:
    """Worth of a caption: image id + sum of its tokens / 1000 + 0.5 if it ended."""

    signature = "Recorder"

    def __init__(self):
        self.seen = collections.Counter()
        self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, image_ids, captions, ended):
        assert image_ids.dtype == np.int64 and ended.dtype == bool
        with self.lock:
            self.calls += 1
            for i, rows, flags in zip(image_ids, captions, ended, strict=True):
                self.seen.update(
                    (int(i), text, bool(e)) for text, e in zip(rows, flags, strict=True)
                )
        return np.array(
            [
                [
                    i + sum(map(int, text.split())) / 1000 + 0.5 * e
                    for text, e in zip(rows, flags, strict=True)
                ]
                for i, rows, flags in zip(image_ids, captions, ended, strict=True)
            ],
            np.float32,
        )


def batch(b=16, r=3, t=5, seed=0):
    """Distinct captions; some have length 0 and some end without EOS."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, t + 1, (b, r)).astype(np.int32)
    tokens = rng.integers(10, 200, (b, r, t)).astype(np.int32)
    ends = rng.random((b, r)) < 0.6
    for i, j in np.ndindex(b, r):
        if ends[i, j] and lengths[i, j]:
            tokens[i, j, lengths[i, j] - 1] = EOS
        tokens[i, j, lengths[i, j] :] = EOS  # padding looks like EOS and must not count
    return np.arange(100, 100 + b, dtype=np.int32), tokens, lengths


def by_hand(image_ids, tokens, lengths):
    seen, values = collections.Counter(), np.zeros(lengths.shape, np.float32)
    for b, r in np.ndindex(*lengths.shape):
        row = tokens[b, r, : lengths[b, r]].tolist()
        ended = bool(row) and row[-1] == EOS
        row = row[:-1] if ended else row
        seen[(int(image_ids[b]), decode(row), ended)] += 1
        values[b, r] = image_ids[b] + sum(row) / 1000 + 0.5 * ended
    return seen, values


def callback_of(reward, mesh=None, vocab_size=None):
    return RewardCallback(
        MixedReward.single(reward), decode, eos_ids=[EOS], mesh=mesh, vocab_size=vocab_size
    )


@pytest.mark.parametrize("name", MESHES)
def test_each_row_once_and_in_place(name):
    mesh = make_mesh(name)
    reward = Recorder()
    callback = callback_of(reward, mesh, vocab_size=300)
    operands = batch()
    seen, values = by_hand(*operands)
    if mesh is not None:  # however the inputs lie
        placed = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        operands = tuple(jax.device_put(x, placed) for x in operands)
    got, parts = jax.jit(callback)(*operands)
    np.testing.assert_array_equal(got, values)  # a single part of weight 1, bit for bit
    np.testing.assert_array_equal(parts["reward"], values)
    callback.raise_if_failed()
    assert reward.seen == seen
    assert reward.calls == CALLS.get(name, 1)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("name", ["one", "1x4x2"])
def test_a_sum_and_its_parts(name):
    class Words:
        signature = "words"

        def __call__(self, image_ids, captions, ended):
            return np.array([[len(c.split()) for c in row] for row in captions], np.float32)

    mixed = MixedReward({"worth": Recorder(), "words": Words()}, {"worth": 0.3, "words": -2.0})
    callback = RewardCallback(mixed, decode, eos_ids=[EOS], mesh=make_mesh(name))
    got, parts = jax.jit(callback)(*batch(b=4))
    assert set(parts) == {"worth", "words"}
    _, worth = by_hand(*batch(b=4))
    np.testing.assert_array_equal(parts["worth"], worth)
    np.testing.assert_allclose(got, 0.3 * worth - 2.0 * np.asarray(parts["words"]), rtol=1e-6)


@pytest.mark.parametrize("name", ["one", "2x2x2"])
def test_differentiates_as_a_constant(name):
    callback = callback_of(Recorder(), make_mesh(name))
    image_ids, tokens, lengths = batch()

    @jax.jit
    def loss(w):
        drawn = jnp.asarray(tokens) + jnp.argmax(w).astype(
            jnp.int32
        )  # depends on w, as a rollout does
        return jnp.sum(callback(jnp.asarray(image_ids), drawn, jnp.asarray(lengths))[0] * w[0])

    value, gradient = jax.value_and_grad(loss)(jnp.array([2.0, 1.0]))
    _, values = by_hand(image_ids, tokens, lengths)
    np.testing.assert_allclose(value, 2 * values.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, [values.sum(), 0.0], rtol=1e-5)


class Failing(Recorder):
    def __call__(self, image_ids, captions, ended):
        if 105 in image_ids:
            raise KeyError("no such image")
        return super().__call__(image_ids, captions, ended)


@pytest.mark.parametrize("name", ["one", "data8", "1x4x2"])
def test_an_exception_comes_back_with_its_traceback(name):
    callback = callback_of(Failing(), make_mesh(name))
    values = np.asarray(jax.jit(callback)(*batch())[0])
    assert np.isnan(values[5]).all()
    for row in values[:4]:  # of other devices: computed, unless the failure was known before
        assert np.isfinite(row).all() or np.isnan(row).all()
    with pytest.raises(KeyError, match="no such image") as caught:
        callback.raise_if_failed()
    assert "in __call__" in "".join(traceback.format_tb(caught.tb))
    callback.raise_if_failed()  # reported once


def test_a_bad_value_is_named():
    class Bad(Recorder):
        signature = "Bad[x1]"

        def __call__(self, image_ids, captions, ended):
            return np.full(ended.shape, np.nan, np.float32)

    callback = callback_of(Bad())
    assert np.isnan(jax.jit(callback)(*batch())[0]).all()
    with pytest.raises(UserError, match=r"reward Bad\[x1\] gave nan"):
        callback.raise_if_failed()


def test_many_steps_beside_collectives():
    """The pattern that deadlocks when the host's thread pool is too small."""
    mesh = make_mesh("2x2x2")
    callback = callback_of(Recorder(), mesh, vocab_size=300)
    operands = batch(b=64, r=6, t=24)
    _, values = by_hand(*operands)

    @jax.jit
    def step(x, *operands):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("data", "fsdp")))
        return x @ x.T + jnp.sum(callback(*operands)[0]), callback(*operands)[0]

    for _ in range(10):
        _, got = step(jnp.ones((64, 64)), *operands)
    np.testing.assert_allclose(got, values, rtol=1e-6)


def test_nothing_is_built_inside_a_step():
    """Neither the scanner of PTB words, which has no lock, nor CIDEr-D's compiled kernel."""
    from har_jax.metrics.cider_d_kernel import score

    operands = batch()
    references = {int(i): ["a red circle"] for i in operands[0]}
    words = [[text.split() for text in texts] for texts in references.values()]
    frequency = DocumentFrequency.from_references(words, n=4, name="here")
    reward = build("cider_d + bleu + repetition", frequency, references)
    ptb._scanner.cache_clear()
    callback = RewardCallback(reward, decode, eos_ids=[EOS], mesh=make_mesh("data8"))
    built, compiled = ptb._scanner.cache_info().misses, len(score.signatures)
    jax.block_until_ready(jax.jit(callback)(*operands))  # numbers are no plain words: they scan
    callback.raise_if_failed()
    assert built == 1
    assert ptb._scanner.cache_info().misses == built
    assert ptb._scanner.cache_info().hits > 0
    assert len(score.signatures) == compiled >= 1


@pytest.mark.usefixtures("untyped")
def test_bad_shapes_and_sizes(monkeypatch):
    mesh = make_mesh("data8")
    image_ids, tokens, lengths = batch(b=12)
    callback = callback_of(Recorder(), mesh)
    with pytest.raises(UserError, match=r"12 images cannot be split over 8 .*a multiple of 8"):
        jax.jit(callback)(image_ids, tokens, lengths)
    jax.eval_shape(callback_of(Recorder(), make_mesh("1x4x2")), image_ids, tokens, lengths)
    with pytest.raises(UserError, match="do not fit tokens"):
        jax.jit(callback)(image_ids[:3], tokens, lengths)

    large = batch(b=64, r=8, t=300)
    monkeypatch.setenv("NPROC", "2")
    with pytest.raises(UserError, match="set NPROC=32"):
        jax.eval_shape(callback, *large)
    small = callback_of(Recorder(), mesh, vocab_size=32_000)
    assert jax.eval_shape(small, *large)[0].shape == (64, 8)  # uint16 halves it
    monkeypatch.setenv("NPROC", "32")
    assert jax.eval_shape(callback, *large)[0].shape == (64, 8)


def test_image_ids_must_fit_a_device_integer():
    assert narrow("image_id", np.array([2**31 - 1])).dtype == np.int32
    with pytest.raises(UserError, match="image_id 2147483648 does not fit 32 bits"):
        narrow("image_id", np.array([2**31]))
