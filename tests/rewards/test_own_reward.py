"""Rewards of one's own, by public names only, in a jitted step on one and on eight devices."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.errors import UserError
from har_jax.rewards import mix
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.mix import MixedReward
from har_jax.sharding import batch_sharding, make_mesh, replicated

WORDS = ["a", "red", "green", "dog", "<eos>"]
EOS = 4
REFERENCES = {i: ["a red dog", "a dog"] for i in range(8)}
SOURCE = '''
import numpy as np

def colours(image_ids, captions, ended, references):
    """Colours that a caption shares with its image's references."""
    return [
        [len({"red", "green"} & set(text.split()) & set(" ".join(references[i]).split()))
         for text in group]
        for i, group in zip(image_ids, captions)
    ]
'''


def decode(ids):
    return " ".join(WORDS[i] for i in ids)


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, EOS, (8, 3, 5)).astype(np.int32)
    tokens[..., -1] = EOS
    return np.arange(8, dtype=np.int32), tokens, np.full((8, 3), 5, np.int32)


def rewarded(mixed, shape):
    mesh = make_mesh(*shape) if shape else None
    params = mixed.load(mesh)
    operands = batch()
    if mesh is not None:
        operands = tuple(jax.device_put(x, batch_sharding(mesh)) for x in operands)
    callback = RewardCallback(mixed, decode, eos_ids=[EOS], mesh=mesh, vocab_size=len(WORDS))
    result = jax.jit(callback)(*operands, params)
    callback.raise_if_failed()
    return params, *result


@pytest.mark.parametrize("shape", [None, (2, 2, 2)], ids=str)
def test_a_function_in_a_module_of_ones_own(monkeypatch, shape):
    module = types.ModuleType("my_own")
    exec(SOURCE, vars(module))
    monkeypatch.setitem(sys.modules, "my_own", module)
    mixed = mix.build("2*my_own:colours - 0.5*repetition", None, REFERENCES)
    _, rewards, parts = rewarded(mixed, shape)
    _, tokens, _ = batch()
    expected = (tokens == WORDS.index("red")).any(axis=-1)  # no reference has a green dog
    np.testing.assert_array_equal(parts["my_own:colours"], expected)
    np.testing.assert_allclose(rewards, 2 * expected - 0.5 * np.asarray(parts["repetition"]))


class Embedded:
    """A network of one table: the mean worth of a caption's words. Both protocols of a reward that
    runs on devices, `DeviceReward` and `LoadedReward`."""

    signature = "embedded"

    def __init__(self, worth):
        self.worth = np.asarray(worth, np.float32)
        self.saved = []

    def __call__(self, image_ids, captions, ended):
        (ids,) = self.prepare(image_ids, captions)
        return self.worth[ids].mean(axis=-1)

    def shapes(self, batch, rows):
        return [((batch, rows, 4), np.int32)]

    def prepare(self, image_ids, captions):
        return [
            np.array([[[WORDS.index(w) for w in c.split()] for c in g] for g in captions], "i4")
        ]

    def in_jit(self, params, ids):
        return params["worth"][ids].mean(axis=-1)

    def load(self, mesh, folder):
        worth = jnp.asarray(self.worth)
        return {"worth": worth if mesh is None else jax.device_put(worth, replicated(mesh))}

    def save(self, folder):
        self.saved.append(folder)


@pytest.mark.parametrize("shape", [None, (8, 1, 1), (1, 4, 2), (1, 1, 8)], ids=str)
def test_networks_of_ones_own_beside_each_other(shape, tmp_path):
    """Two of a kind: each reads its own parameters."""
    first, second = Embedded([1, 2, 3, 4]), Embedded([0, 1, 0, -1])
    mixed = MixedReward({"first": first, "second": second}, {"first": 1.0, "second": -2.0})
    params, rewards, parts = rewarded(mixed, shape)
    assert sorted(params) == ["reward.first.worth", "reward.second.worth"]
    ids, tokens, lengths = batch()
    captions = [[decode(row[:-1]) for row in group] for group in tokens]
    total, expected = mixed.breakdown(ids.astype(np.int64), captions, lengths > 0)
    for name, values in expected.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-6)
    np.testing.assert_allclose(rewards, total, rtol=1e-5, atol=1e-6)
    mixed.save(tmp_path)
    assert first.saved == second.saved == [tmp_path]


def test_what_the_host_half_raises_ends_the_step():
    class Broken(Embedded):
        def prepare(self, image_ids, captions):
            raise UserError("no such word")

    mixed = MixedReward.single(Broken([1, 2, 3, 4]))
    callback = RewardCallback(mixed, decode, eos_ids=[EOS])
    assert np.isnan(jax.jit(callback)(*batch(), mixed.load(None))[0]).all()
    with pytest.raises(UserError, match="no such word"):
        callback.raise_if_failed()
