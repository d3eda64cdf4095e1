"""ZeroCap against a PyTorch transcription of the published program, piece by piece and whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from har_jax.interchange.families.gpt2 import load_gpt2
from har_jax.models.attention import KV
from har_jax.zerocap import guidance, search
from har_jax.zerocap.captioner import ZeroCap
from har_jax.zerocap.guidance import Context, Steered
from har_jax.zerocap.settings import Guidance
from tests.zerocap.published import ARTICLE, Published, Settings
from tests.zerocap.worlds import draw_images, make_world, png_bytes

CANDIDATES, STEPS, BEAMS = 24, 5, 3
SIZES = {"candidates": CANDIDATES, "max_tokens": STEPS, "beams": BEAMS}
FORBIDDEN = (3, 17, 40)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("zerocap"), seed=3)


@pytest.fixture(scope="module")
def images():
    return draw_images(20, seed=1)


@pytest.fixture(scope="module")
def forbidden_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "forbidden.npy"
    np.save(path, np.array(FORBIDDEN))
    return str(path)


@pytest.fixture(scope="module")
def pairs(world, forbidden_file):
    """Both implementations with the same settings; made once, as every one compiles anew."""
    return functools.cache(functools.partial(_pair, world, forbidden_file))


def _pair(world, forbidden_file, preset, **changes):
    ours = Guidance.preset(preset, {**SIZES, "forbidden": forbidden_file, **changes})
    theirs = dataclasses.replace(
        {"repo": Settings(), "paper": ARTICLE}[preset],
        candidates=CANDIDATES,
        steps=STEPS,
        beams=BEAMS,
        forbidden=FORBIDDEN,
        repetition_penalty=changes.get("repetition_factor", 1.0) if preset == "repo" else 1.0,
    )
    zerocap = ZeroCap(world.clip, world.gpt2, ours, batch_size=5)
    return zerocap, Published(world.gpt2, world.clip, theirs)


def as_cache(arrays):
    """transformers' [K,heads,T,width] as ours."""
    return tuple(KV(*map(np.asarray, kv)) for kv in arrays)


@pytest.fixture(scope="module")
def sampled(world):
    how = Guidance.preset("approx", {"candidates": 20, "max_tokens": 4})
    return ZeroCap(world.clip, world.gpt2, how, batch_size=3)


@pytest.fixture(scope="module")
def inner(pairs, images):
    """A context of three beams, with everything about it from both sides."""
    zerocap, published = pairs("repo")
    prompt = zerocap.prompt_ids
    rng = np.random.default_rng(0)
    words = rng.integers(5, 300, (3, 2))
    tokens_kt = np.concatenate([np.tile(prompt, (3, 1)), words], axis=1).astype(np.int32)
    image_1e = published.image_feature([images[0]])
    context_kt = torch.tensor(tokens_kt, dtype=torch.long)
    with torch.no_grad():
        _, cache = published.read(context_kt[:, :-1])
        before_kv = torch.softmax(published.read(context_kt)[0], dim=-1)
    return zerocap, published, tokens_kt, image_1e, cache, before_kv, context_kt


def test_image_features_and_sums_of_images(inner, images):
    zerocap, published, *_ = inner
    ours = zerocap.features([png_bytes(image) for image in images[:3]])
    total = ours[:1] + ours[1:2] - ours[2:3]
    expected = published.image_feature(images[:3], [1, 1, -1]).numpy()
    np.testing.assert_allclose(total / np.linalg.norm(total), expected, atol=1e-5)


def keys(n):
    """Of random numbers, which these presets do not draw."""
    return list(jax.random.split(jax.random.key(0), n))


@pytest.mark.parametrize("preset", ["repo", "paper"])
def test_candidates_losses_gradients_and_updates_of_each_iteration(preset, world, pairs, inner):
    _, _, tokens_kt, image_1e, cache, before_kv, context_kt = inner
    zerocap, published = pairs(preset)
    _, trace = published.shift_context(image_1e, cache, context_kt, before_kv)
    lm = load_gpt2(world.gpt2)

    def read(last_n, t, kv):
        return guidance.read(lm, zerocap.vocabulary.no_token_v, last_n, t, kv)

    # 1. Our context, with room for one more token than it needs.
    t = tokens_kt.shape[1] - 1
    _, kv = lm.prefill(lm.embed(tokens_kt[:, :-1]), room=2)
    logits, _ = read(tokens_kt[:, -1], jnp.asarray(t), kv)
    context = Context(jnp.asarray(tokens_kt[:, -1]), jnp.asarray(t), kv, jax.nn.log_softmax(logits))
    np.testing.assert_allclose(jnp.exp(context.log_p0_nv), before_kv, atol=1e-5)
    # 2. CLIP's opinion of every token, so that no iteration waits for one.
    n, v = logits.shape
    cos_nv = []
    for row in context_kt:
        texts = [published.decode(row).replace(published.tokenizer.bos_token, "")] * v
        texts = [a + published.decode([i]) for i, a in enumerate(texts)]
        cos_nv.append((published.text_features(texts) @ image_1e[0]).numpy())
    cos_nv = jnp.asarray(np.stack(cos_nv))
    # 3. One iteration at a time, each from where theirs stood.
    delta = jax.tree.map(jnp.zeros_like, kv)
    how = dataclasses.replace(zerocap.how, iterations=1)
    for step in trace:
        at = Steered(delta, jnp.asarray(0), jnp.zeros((n, CANDIDATES), int), jnp.asarray(True))
        at = jax.jit(lambda at: guidance.steer(read, how, context, cos_nv, at))(at)
        assert not at.missing and at.done == 1
        assert [set(a) for a in np.asarray(at.ids_nc).tolist()] == [
            set(b) for b in step.candidates_kc.tolist()
        ]
        expected = as_cache(step.deltas)
        for ours, theirs in zip(at.delta, expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a[:, :, : b.shape[2]], b, atol=TOLERANCE)
                assert not np.any(a[:, b.shape[1] :]), "places that are not written yet moved"
        log_p_nv = jnp.log(step.probs_kv)
        clip_n, fluency_n = guidance.losses(
            log_p_nv,
            jnp.log(before_kv.numpy()),
            jnp.asarray(step.candidates_kc),
            jnp.asarray(step.targets_kc),
        )
        np.testing.assert_allclose(clip_n, step.clip_k, rtol=TOLERANCE)
        np.testing.assert_allclose(fluency_n, step.fluency_k, atol=TOLERANCE)
        ours = guidance.normalised(jax.tree.map(jnp.asarray, as_cache(step.gradients)), how)
        moves = [published.descent(torch.tensor(k), torch.tensor(v)) for k, v in step.gradients]
        for kv_, moved in zip(ours, as_cache(moves), strict=True):
            for a, b in zip(kv_, moved, strict=True):
                np.testing.assert_allclose(-how.step_size * a, b, rtol=1e-4, atol=1e-6)
        delta = jax.tree.map(
            lambda old, new: old.at[:, :, : new.shape[2]].set(new), delta, expected
        )


@pytest.mark.parametrize("step", [0, 1, 4])
@pytest.mark.parametrize("factor", [1.0, 1.7])
def test_special_tokens(inner, pairs, step, factor):
    *_, context_kt = inner
    zerocap, published = pairs("repo", repetition_factor=factor)
    logits_kv = 3 * torch.randn(3, zerocap.vocabulary.size, generator=torch.manual_seed(step))
    logits_kv[0, zerocap.end_id] = -2.0
    expected = published.adjust(logits_kv, context_kt, step)
    ours = guidance.adjusted(
        jnp.asarray(logits_kv.numpy()),
        zerocap._recent(np.asarray(context_kt), step),
        jnp.asarray(step),
        zerocap.how,
        zerocap.end_id,
        zerocap.vocabulary.forbidden_v(zerocap.how.forbidden),
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "count"),
    [("repo", 3), ("paper", 2), pytest.param("repo", 20, marks=pytest.mark.long)],
)
def test_captions_are_the_same(preset, count, pairs, images):
    images = images[:count]
    zerocap, published = pairs(preset)
    features = zerocap.features([png_bytes(image) for image in images])
    n = zerocap.batch_size
    ours = [
        w
        for i in range(0, count, n)
        for w in zerocap.write(features[i : i + n], keys(min(n, count)))
    ]
    expected = [published.caption([image]) for image in images]
    assert [w.text for w in ours] == [caption.with_prompt for caption in expected]
    assert len({w.text for w in ours}) > 1, "the images make no difference"
    ended = [c.beams[c.best].tokens[-1] == published.end for c in expected]
    assert [w.ended for w in ours] == ended


def test_each_judgement_is_made_once(pairs, images, monkeypatch):
    """Candidates of later iterations are known from earlier ones, but for the few new ones."""
    zerocap, _ = pairs("repo")
    asked = []
    texts = zerocap.judge.crossing.texts

    def counted(beginnings, rows, ids_nc):
        asked.append(int((ids_nc >= 0).sum()))
        return texts(beginnings, rows, ids_nc)

    monkeypatch.setattr(zerocap.judge.crossing, "texts", counted)
    n = 3  # images at once, for which the test above has compiled everything
    zerocap.write(zerocap.features([png_bytes(image) for image in images[:n]]), keys(n))
    looks = n * zerocap.how.iterations * CANDIDATES * (1 + (STEPS - 1) * zerocap.how.beams)
    assert n * CANDIDATES * STEPS < sum(asked) < looks / 2


def test_cosines_do_not_depend_on_how_they_were_computed(pairs, images):
    """A beginning read once, words from a table, groups of like length: as if read one by one."""
    zerocap, published = pairs("repo")
    beginnings = ["Image of a do", "Image of", "Image of a dog isn't", "Image of a dog " * 14, "x"]
    beginnings += [zerocap.vocabulary.decode(row) for row in np.arange(60).reshape(3, 20)]
    n, v = len(beginnings), zerocap.vocabulary.known
    image_ne = jnp.repeat(jnp.asarray(published.image_feature([images[0]]).numpy()), n, axis=0)
    word, cos_nv = zerocap.judge.begin(beginnings, image_ne)
    cos_nv = zerocap.judge.fill(cos_nv, word, np.tile(np.arange(v), (n, 1)))
    for row, beginning in zip(np.asarray(cos_nv), beginnings, strict=False):
        texts = [beginning + part for part in zerocap.vocabulary.texts[:v]]
        expected = published.text_features(texts) @ image_ne[0].__array__()
        np.testing.assert_allclose(row[:v], expected, atol=2e-6)


def test_the_sampled_method_draws_from_the_published_distribution(sampled, world, images):
    zerocap, published = sampled, Published(world.gpt2, world.clip)
    prompt = published.tokenizer.encode(sampled.how.prompt)
    image_1e = published.image_feature([images[0]])
    forced = published.tokenizer.encode(" dog dog")
    expected_v = published.approximate_step(image_1e, [*prompt, *forced], top_k=20)
    tokens = np.array([[*prompt, *forced]], np.int32)
    cache, _ = zerocap._begin(1)
    for t in range(len(prompt) - 1, tokens.shape[1]):
        log_p0, cache, ids = zerocap._look(zerocap._params, tokens[:, t], jnp.asarray(t), cache)
    image = jnp.asarray(image_1e.numpy())
    word, cos = zerocap.judge.begin(zerocap._texts(tokens), image)
    cos = zerocap.judge.fill(cos, word, np.asarray(ids))
    cos_nc = jnp.take_along_axis(cos[:1], ids, axis=1)
    ours = np.zeros_like(expected_v)
    ours[np.asarray(ids[0])] = np.exp(search.guided_log_p(log_p0, ids, cos_nc, 1.0)[0])
    np.testing.assert_allclose(ours, expected_v, atol=1e-4)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = search.draw(keys, jnp.tile(ids, (4000, 1)), jnp.log(ours[ids]).repeat(4000, 0))
    shares = np.bincount(np.asarray(drawn), minlength=len(ours)) / 4000
    assert np.abs(shares - ours).max() < 0.03


def test_a_draw_depends_on_its_key_alone(sampled, images):
    zerocap = sampled
    features = zerocap.features([png_bytes(image) for image in images[:3]])
    keys = list(jax.random.split(jax.random.key(0), 3))
    first = zerocap.write(features, keys)
    turned = zerocap.write(features[::-1], keys[::-1])
    assert first == turned[::-1]
    assert first != zerocap.write(features, list(jax.random.split(jax.random.key(1), 3)))
    assert all(w.text.startswith("A photo of a") for w in first)
