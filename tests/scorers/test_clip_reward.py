"""CLIPScore as a reward: the same values as the metric's, in a step and outside, on any mesh."""

import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from har_jax import evaluate, train
from har_jax.data.dataset import open_split
from har_jax.errors import UserError
from har_jax.files import read_json_lines
from har_jax.interchange.families.clip import load_clip
from har_jax.metrics.embedding_scores import clip_score
from har_jax.rewards.callback import RewardCallback
from har_jax.rewards.mix import MixedReward
from har_jax.scorers import clip_reward
from har_jax.scorers.clip import ClipScorer
from har_jax.scorers.clip_reward import ClipScoreReward
from har_jax.sharding import batch_sharding, make_mesh
from tests.objectives.test_scst import count_primitives
from tests.training.commands import train_arguments

WORDS = [*"a red circle on the blue square near two green stars".split(), "<eos>"]  # noqa: SIM905
EOS = len(WORDS) - 1
B, R, T = 8, 3, 6


class Length:
    """The host's part of the mixture."""

    signature = "length"

    def __call__(self, image_ids, captions, ended):
        return np.array([[len(c.split()) for c in row] for row in captions], np.float32)


@pytest.fixture(scope="module")
def images(workspace):
    return open_split(workspace / "data", "train")


@pytest.fixture(scope="module")
def clip(workspace):
    return workspace / "models/clip-b"


@pytest.fixture(scope="module")
def batch(images):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, EOS, (B, R, T)).astype(np.int32)
    lengths = rng.integers(0, T + 1, (B, R)).astype(np.int32)
    return np.asarray(images.ids[3 : 3 + B], np.int32), tokens, lengths


def text_of(ids):
    return " ".join(WORDS[i] for i in ids)


def captions_of(tokens, lengths):
    return [
        [text_of(row[:n]) for row, n in zip(*group, strict=True)]
        for group in zip(tokens.tolist(), lengths.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def expected(clip, images, batch):
    """By the metric, which is tested against PyTorch; one caption at a time."""
    image_ids, tokens, lengths = batch
    scorer = ClipScorer(clip)
    row = {image_id: i for i, image_id in enumerate(images.ids)}
    looks = scorer.embed_images(images[row[int(i)]].image for i in image_ids)
    captions = captions_of(tokens, lengths)
    texts = scorer.embed_texts([text for group in captions for text in group])
    values = clip_score(np.repeat(looks, R, axis=0), texts).reshape(B, R)
    assert values.max() > 0.05 and np.ptp(values, axis=1).max() > 0.01
    return values


@pytest.mark.parametrize("shape", [None, (2, 2, 2)], ids=str)
def test_a_step_computes_what_the_metric_computes(clip, images, batch, expected, shape):
    part = ClipScoreReward(clip, images)
    mesh = make_mesh(*shape) if shape else None
    mixed = MixedReward(
        {"length": Length(), "clip_score": part}, {"length": 0.5, "clip_score": 2.0}
    )
    params = mixed.load(mesh)
    assert all(name.startswith("reward.clip_score.") for name in params)
    callback = RewardCallback(mixed, text_of, eos_ids=[EOS], mesh=mesh, vocab_size=len(WORDS))

    @jax.jit
    def step(scale, params, *operands):
        def loss(scale):
            rewards, parts = callback(*operands, params)
            return scale * jnp.sum(rewards), (rewards, parts)

        return jax.value_and_grad(loss, has_aux=True)(scale)

    operands = batch
    if mesh is not None:
        operands = tuple(jax.device_put(x, batch_sharding(mesh)) for x in batch)
    (_, (rewards, parts)), gradient = step(1.0, params, *operands)
    callback.raise_if_failed()
    np.testing.assert_allclose(parts["clip_score"], expected, atol=1e-5)
    n_words = batch[2]
    np.testing.assert_allclose(rewards, 0.5 * n_words + 2.0 * expected, atol=1e-5)
    np.testing.assert_allclose(gradient, np.sum(rewards), rtol=1e-5)  # the rewards are constants
    np.testing.assert_array_equal(parts["length"], n_words)
    traced = jax.make_jaxpr(step)(1.0, params, *batch)
    assert count_primitives(traced.jaxpr, ["pure_callback"]) == {"pure_callback": 1}


def test_outside_of_a_step_it_is_a_reward_like_any_other(clip, images, batch, expected):
    image_ids, tokens, lengths = batch
    part = ClipScoreReward(clip, images)
    values = part(image_ids.astype(np.int64), captions_of(tokens, lengths), lengths > 0)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, atol=1e-5)
    with pytest.raises(UserError, match=r"clip_score has no image 7:.*48 images of 'train'"):
        part(np.array([7]), [["a dog"]], np.ones((1, 1), bool))


def test_an_unknown_image_in_a_step_is_reported(clip, images, batch):
    part = ClipScoreReward(clip, images)
    mixed = MixedReward.single(part)
    params = mixed.load(None)
    callback = RewardCallback(mixed, text_of, eos_ids=[EOS])
    _, tokens, lengths = batch
    rewards, _ = jax.jit(callback)(np.arange(B, dtype=np.int32), tokens, lengths, params)
    assert np.isnan(rewards).all()
    with pytest.raises(UserError, match="clip_score has no image 0"):
        callback.raise_if_failed()


def test_a_step_needs_the_text_tower_and_nothing_else(clip, images):
    """The tower of the images is gone before the other one is there."""
    gc.collect()
    before = {id(x) for x in jax.live_arrays()}
    params = ClipScoreReward(clip, images).load(None)
    gc.collect()
    left = [x for x in jax.live_arrays() if id(x) not in before]
    assert sum(x.nbytes for x in left) == sum(x.nbytes for x in params.values())
    whole = sum(x.size for x in jax.tree.leaves(nnx.state(load_clip(clip))))
    assert sum(x.size for x in params.values()) < 0.6 * whole


def test_images_are_embedded_once(clip, images, tmp_path, monkeypatch):
    first = ClipScoreReward(clip, images)
    first.load(None, tmp_path)
    assert not list(tmp_path.iterdir()), "loading writes nothing"
    first.save(tmp_path)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(clip_reward, "ClipScorer", None)  # would have to embed
    again = ClipScoreReward(clip, images)
    again.load(None, tmp_path)
    np.testing.assert_array_equal(again._vectors, first._vectors)
    # Other images, another CLIP, or half a file: not these.
    other = ClipScoreReward(clip, open_split(images.directory, "val"))
    another = ClipScoreReward(clip.parent / "clip-l", images)
    assert len({first.cache_name, other.cache_name, another.cache_name}) == 3
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(TypeError, match="NoneType"):
        ClipScoreReward(clip, images).load(None, tmp_path)


def test_training_with_it_and_scoring_with_the_same_clip(
    workspace, tmp_path, capsys, on_one_device, monkeypatch
):
    """Both parts are logged, images embedded once, and a CLIP that scores itself is warned of."""
    mle, scst = tmp_path / "mle", tmp_path / "scst"
    assert train.main(train_arguments(workspace, mle, steps=1, data__val_split="")) == 0
    settings = dict(
        init_from=mle, data__val_split="", scst__samples=2, scst__doctor="off", log_every=1
    )
    reward = {"scst__reward": "cider_d + 2.0*clip_score"}
    assert train.main(train_arguments(workspace, scst, "scst", **settings, **reward)) == 2
    assert "--config.scst.reward_clip=HF_DIR" in capsys.readouterr().err
    reward["scst__reward_clip"] = workspace / "models/clip-b"
    alone = {**reward, "scst__reward": "cider_d"}
    assert train.main(train_arguments(workspace, scst, "scst", **settings, **alone)) == 2
    assert "has no part in the reward 'cider_d'" in capsys.readouterr().err
    assert not scst.exists()
    code = train.main(
        train_arguments(workspace, scst, "scst", **settings, **reward, steps=2, batch_size=8)
    )
    assert code == 0
    assert len(list(scst.glob("image_embeddings.*.npy"))) == 1
    rows = [row for row in read_json_lines(scst / "metrics.jsonl") if "train/reward" in row]
    assert len(rows) == 2
    for row in rows:
        assert 0 <= row["train/reward_part/clip_score"] <= 2.5
        # All rows of a batch: one greedy and two samples of each image.
        mean = (row["train/reward_greedy"] + 2 * row["train/reward"]) / 3
        parts = row["train/reward_part/cider_d"] + 2 * row["train/reward_part/clip_score"]
        assert parts == pytest.approx(mean, abs=1e-4)
    signature = json.loads((scst / "run.json").read_text())["reward_signature"]
    assert (
        "1.0*CIDEr-D[" in signature and "2.0*CLIPScore[w2.5,prompt='A photo depicts'" in signature
    )
    out = tmp_path / "out"
    monkeypatch.setattr(shutil, "which", lambda name: None)  # the metrics of Java take long
    arguments = [f"--checkpoint={scst}", f"--out={out}", "--limit=8"]
    assert evaluate.main([*arguments, f"--clip={workspace / 'models/clip-b'}"]) == 0
    (warning,) = json.loads((out / "scores.json").read_text())["warnings"]
    assert "the CLIP that scores was also part of the reward" in warning


def test_a_clip_with_another_models_tokenizer_is_refused_before_a_device_is_touched(
    clip, images, tmp_path
):
    copy = shutil.copytree(clip, tmp_path / "clip")
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 49407
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="ends texts with id"):
        ClipScoreReward(copy, images)
