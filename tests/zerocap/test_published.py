"""The transcription of ZeroCap against brute force, and the worlds that it is tried on."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from har_jax.interchange.families.gpt2 import load_gpt2
from har_jax.scorers.clip import ClipFiles
from har_jax.text.tokenizer import load_tokenizer
from tests.zerocap import worlds
from tests.zerocap.beams import search
from tests.zerocap.published import ARTICLE, Published, Settings

SMALL = Settings(candidates=16, beams=3, steps=4, iterations=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.make_world(tmp_path_factory.mktemp("world"), seed=0)


@pytest.fixture(scope="module")
def double(world):
    return Published(world.gpt2, world.clip, SMALL, torch.float64)


@pytest.fixture(scope="module")
def image():
    return worlds.draw_images(1, seed=5)[0]


def with_settings(published, settings=SMALL, **changes):
    copy = object.__new__(Published)
    copy.__dict__.update(published.__dict__, settings=dataclasses.replace(settings, **changes))
    return copy


def three_beams(published):
    """Contexts [3,T] that differ, and the distributions after them."""
    texts = ["Image of a dog and", "Image of a cat and", "Image of a car and"]
    rows = [published.context(text)[0] for text in texts]
    context_kt = torch.stack([row[: min(map(len, rows))] for row in rows])
    _, cache = published.read(context_kt[:, :-1])
    return context_kt, cache, torch.softmax(published.read(context_kt)[0], dim=-1)


# ------------------------------------------------------------------------------------ the worlds


def test_the_loaders_take_a_world(world):
    model, tokenizer, files = (
        load_gpt2(world.gpt2),
        load_tokenizer(world.gpt2),
        ClipFiles(world.clip),
    )
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.vocab_size - 1
    assert model.config.vocab_size == tokenizer.vocab_size
    assert tokenizer.token(0) == "!", "what fills up a finished beam"
    assert files.tokenize.context_length == 77


def test_a_world_is_that_of_its_seed(world, tmp_path):
    again = worlds.make_world(tmp_path / "same", seed=0)
    other = worlds.make_world(tmp_path / "other", seed=1)
    for name in ("model.safetensors", "tokenizer.json"):
        for part in ("gpt2", "clip"):
            first, same, different = (
                (getattr(w, part) / name).read_bytes() for w in (world, again, other)
            )
            assert first == same
            assert (first == different) == (name == "tokenizer.json")


def test_a_world_is_not_flat(world, double, image):
    published = Published(world.gpt2, world.clip, SMALL)
    with torch.no_grad():
        probs_v = torch.softmax(published.read(published.context())[0], dim=-1)[0]
    assert probs_v.min() > 1e-12 and probs_v.max() > 0.05
    texts = worlds.captions(20)
    similarity = published.text_features(texts) @ published.text_features(texts).T
    assert torch.triu(similarity, 1).max() < 0.9999
    targets = published.clip_targets(published.image_feature([image]), [texts])
    assert (targets > 1e-3).sum() > 3


def test_the_tokenizers_agree(world, double):
    text = "Somebody's picture of a tiny, red café."
    ids = double.tokenizer.encode(text)
    assert ids == load_tokenizer(world.gpt2).encode(text)[:-1]
    assert double.plain(ids) == text
    np.testing.assert_array_equal(
        double.texts_to_clip_tokens([text, text * 20]),
        ClipFiles(world.clip).tokenize([text, text * 20]),
    )


# ------------------------------------------------------------------------------------- the pieces


def test_image_features_are_summed_before_they_are_normalised(double):
    images = worlds.draw_images(3, seed=2)
    with torch.no_grad():
        pixels = double.processor(images, return_tensors="pt")["pixel_values"].double()
        raw = double.clip.get_image_features(pixels).pooler_output
    wanted = raw[0] + raw[1] - raw[2]
    found = double.image_feature([worlds.png_bytes(image) for image in images], [1, 1, -1])
    torch.testing.assert_close(found[0], wanted / wanted.square().sum().sqrt())


def test_gaps_before_punctuation_close(double):
    ids = double.tokenizer.encode("a dog , isn 't it ?")
    assert double.decode(ids) == "a dog, isn 't it?"
    assert with_settings(double, clean_up=False).decode(ids) == "a dog , isn 't it ?"


def test_candidates_continue_each_beam_without_its_start(double):
    context_kt, _, probs_kv = three_beams(double)
    ids_kc, texts = double.candidates(probs_kv, context_kt)
    for k, row in enumerate(probs_kv.numpy()):
        np.testing.assert_array_equal(ids_kc[k], np.argsort(-row)[:16])
        prefix = double.plain(context_kt[k])
        assert texts[k] == [prefix + double.decode([i]) for i in ids_kc[k]]


def test_targets_and_losses_one_by_one(double, image):
    context_kt, _, probs_kv = three_beams(double)
    before_kv = probs_kv.roll(1, 0)
    ids_kc, texts = double.candidates(probs_kv, context_kt)
    image_1e = double.image_feature([image])
    targets_kc = double.clip_targets(image_1e, texts)
    losses = double.losses(probs_kv, before_kv, ids_kc, targets_kc)
    total = 0.0
    for k in range(3):
        cosines = [float(double.text_features([text])[0] @ image_1e[0]) for text in texts[k]]
        weights = np.exp(np.array(cosines) / 0.01 - max(cosines) / 0.01)
        weights /= weights.sum()
        np.testing.assert_allclose(targets_kc[k], weights, rtol=1e-9)
        p, p0 = probs_kv[k].numpy(), before_kv[k].numpy()
        pairs = zip(weights, ids_kc[k].tolist(), strict=True)
        clip = -sum(weight * np.log(p[i]) for weight, i in pairs)
        fluency = sum(p * np.log(p / p0))
        np.testing.assert_allclose([losses.clip_k[k], losses.fluency_k[k]], [clip, fluency])
        total += clip + 0.2 * fluency
    np.testing.assert_allclose(losses.total, total)


def test_gradients_by_finite_differences(double, image):
    context_kt, cache, before_kv = three_beams(double)
    image_1e = double.image_feature([image])
    _, trace = double.shift_context(image_1e, cache, context_kt, before_kv)
    deltas = [tuple(map(torch.from_numpy, pair)) for pair in trace[0].deltas]
    second = trace[1]  # the first has no fluency loss yet
    ids_kc, targets_kc = map(torch.from_numpy, (second.candidates_kc, second.targets_kc))

    def total(layer: int, part: int, place: tuple[int, ...], h: float) -> float:
        moved = [[k + dk, v + dv] for (k, v), (dk, dv) in zip(cache, deltas, strict=True)]
        moved[layer][part][place] += h
        probs_kv = torch.softmax(double.logits_after(context_kt[:, -1:], moved), dim=-1)
        return float(double.losses(probs_kv, before_kv, ids_kc, targets_kc).total)

    np.testing.assert_allclose(total(0, 0, (0, 0, 0, 0), 0.0), second.total, rtol=1e-12)
    for layer, part, place in [(0, 0, (0, 1, 2, 3)), (0, 1, (2, 3, 0, 5)), (1, 1, (1, 0, 1, 7))]:
        h = 1e-5
        slope = (total(layer, part, place, h) - total(layer, part, place, -h)) / (2 * h)
        found = second.gradients[layer][part][place]
        assert abs(found) > 1e-8
        np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("settings", [SMALL, ARTICLE], ids=["code", "article"])
def test_deltas_follow_the_gradients(double, image, settings):
    published = with_settings(double, settings, candidates=16, iterations=3)
    context_kt, cache, before_kv = three_beams(published)
    image_1e = published.image_feature([image])
    shifted, trace = published.shift_context(image_1e, cache, context_kt, before_kv)
    for layer, part, k in itertools.product(range(2), range(2), range(3)):
        moved = 0.0
        for iteration in trace:
            both = [g[k] for g in iteration.gradients[layer]]
            if settings is ARTICLE:
                norm = np.sqrt(sum((g**2).sum() for g in both))
            else:
                norm = np.sqrt((both[part] ** 2).sum()) ** 0.9
            moved = moved - 0.3 * both[part] / norm
            np.testing.assert_allclose(iteration.deltas[layer][part][k], moved, rtol=1e-9)
        wanted = cache[layer][part][k].numpy() + moved
        np.testing.assert_allclose(shifted[layer][part][k], wanted)


def test_beams_are_guided_apart(double, image):
    context_kt, cache, before_kv = three_beams(double)
    image_1e = double.image_feature([image])
    together, _ = double.shift_context(image_1e, cache, context_kt, before_kv)
    alone_cache = [(k[1:2], v[1:2]) for k, v in cache]
    alone, _ = double.shift_context(image_1e, alone_cache, context_kt[1:2], before_kv[1:2])
    for pair, other in zip(together, alone, strict=True):
        for x, y in zip(pair, other, strict=True):
            torch.testing.assert_close(x[1:2], y, rtol=1e-8, atol=1e-10)


def test_adjusted_logits(double):
    published = with_settings(double, repetition_penalty=2.0, forbidden=(7, 8))
    end = published.end
    logits = torch.zeros(1, published.lm.config.vocab_size, dtype=torch.float64)
    context = torch.tensor([[1, 2, 3, 4, 4, 5]])
    logits[0, [1, 2, 3, 4, 5, 7, 8]] = torch.tensor([1.0, 1, 1, -1, 1, 1, -1]).double()
    for i, sign, factor in [(0, 1, 1 / 1.6), (0, -1, 1.6), (1, 1, 1.01), (1, -1, 1 / 1.01)]:
        logits[0, end] = sign
        found = published.adjust(logits, context, i)
        assert found[0, [1, 2, 3, 4, 5]].tolist() == [1, 1, 0.5, -2, 0.5]
        assert found[0, [7, 8]].tolist() == [0.05, -20]
        np.testing.assert_allclose(found[0, end], sign * factor)
    late = with_settings(double, ARTICLE)
    ends = [float(late.adjust(logits.abs(), context, i)[0, end]) for i in (0, 2, 3)]
    np.testing.assert_allclose(ends, [1 / 1.6, 1, 1.04])
    assert late.recent(context[0], 0) == set() and late.recent(context[0], 2) == {4, 5}


def test_probabilities_without_guidance(double, image):
    image_1e = double.image_feature([image])
    context_kt, _, before_kv = three_beams(double)
    plain = with_settings(double, iterations=0, end_factor=1.0)
    joint = plain.next_probs(image_1e, context_kt, 1)
    torch.testing.assert_close(joint, before_kv / 3)
    rows = with_settings(plain, plain.settings, normalise_jointly=False)
    torch.testing.assert_close(rows.next_probs(image_1e, context_kt, 1), before_kv)
    halved = with_settings(rows, rows.settings, repeat_probability=0.5, fusion=1.0)
    wanted = before_kv.clone()
    for k in range(3):
        wanted[k, context_kt[k, -4:].unique()] *= 0.5
    wanted /= wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(halved.next_probs(image_1e, context_kt, 1), wanted)


# ------------------------------------------------------------------------------------ the search


def toy(seed: int, vocabulary: int = 5):
    """A random distribution for every context."""
    table = np.random.default_rng(seed).normal(size=(vocabulary,) * 4) * 1.5
    table -= np.log(np.exp(table).sum(-1, keepdims=True))

    def log_probs(context_kt, i):
        last = torch.nn.functional.pad(context_kt, (3, 0))[:, -3:].numpy()
        return torch.from_numpy(np.stack([table[tuple(row)] for row in last]))

    return log_probs


@pytest.mark.parametrize("seed", range(4))
def test_search_of_two_tokens_is_exhaustive(seed):
    log_probs, end = toy(seed), 2
    tokens, lengths, scores, _ = search(log_probs, torch.tensor([[1]]), beams=5, steps=2, end=end)
    first = log_probs(torch.tensor([[1]]), 0)[0]
    every = {(end, 0): float(first[end])}
    for a in set(range(5)) - {end}:
        row = log_probs(torch.tensor([[1, a]]), 1)[0]
        every |= {(a, b): float(first[a] + row[b]) / 2 for b in range(5)}
    best = sorted(every, key=every.__getitem__, reverse=True)[:5]
    assert [tuple(row) for row in tokens.tolist()] == best
    np.testing.assert_allclose(scores, [every[row] for row in best])
    assert lengths.tolist() == [1 if row[0] == end else 2 for row in best]


@pytest.mark.parametrize("seed", range(4))
def test_search_of_many_tokens_by_lists(seed):
    log_probs, end, steps = toy(seed), 2, 7
    tokens, lengths, scores, trace = search(
        log_probs, torch.tensor([[1]]), beams=3, steps=steps, end=end
    )
    beams = [((), 0.0)]
    for i in range(steps):
        longer = []
        for text, total in beams:
            if text[-1:] == (end,):
                longer.append((text, total))
                continue
            row = log_probs(torch.tensor([[1, *text]]), i)[0]
            longer += [((*text, v), total + float(row[v])) for v in range(5)]
        beams = sorted(longer, key=lambda beam: -beam[1] / len(beam[0]))[:3]
        if all(text[-1] == end for text, _ in beams):
            break
    assert len(trace) == i + 1
    found = [tuple(row[: int(n)]) for row, n in zip(tokens.tolist(), lengths, strict=True)]
    assert found == [text for text, _ in beams]
    np.testing.assert_allclose(scores, [total / len(text) for text, total in beams])


def test_a_caption_is_the_beam_nearest_to_the_image(double, image):
    caption = double.caption([image])
    image_1e = double.image_feature([image])
    beams, trace = double.beam_search(image_1e)
    assert [beam.text for beam in caption.beams] == [beam.text for beam in beams]
    assert [beam.score for beam in beams] == sorted((b.score for b in beams), reverse=True)
    assert 1 <= len(trace) <= 4 and caption.text == beams[caption.best].text
    assert caption.with_prompt == "Image of a" + caption.text
    for beam, cosine in zip(beams, caption.cosines, strict=True):
        wanted = float(double.text_features([beam.text])[0] @ image_1e[0])
        np.testing.assert_allclose(cosine, wanted)
    assert caption.best == int(np.argmax(caption.cosines))


# ----------------------------------------------------------------------------- without gradients


def test_approximation_weighs_the_top_tokens(double, image):
    image_1e = double.image_feature([image])
    forced = double.tokenizer.encode(" red dog near")
    run = double.approximate([image], forced=forced, top_k=12, strength=0.3)
    assert run.tokens == forced and run.caption == "A photo of a red dog near"
    prefix = double.tokenizer.encode("A photo of a")
    for t, probs_v in enumerate(run.probs_tv):
        context = [*prefix, *forced[:t]]
        lm_v = torch.softmax(double.read(torch.tensor([context]))[0][0], dim=-1).numpy()
        wanted = np.zeros_like(lm_v)
        for i in np.argsort(-lm_v)[:12]:
            text = double.plain([*context, i])
            cosine = float(double.text_features([text])[0] @ image_1e[0])
            wanted[i] = lm_v[i] * np.exp(30 * cosine)
        np.testing.assert_allclose(probs_v, wanted / wanted.sum(), rtol=1e-6, atol=1e-12)


def test_approximation_draws(double, image):
    greedy = double.approximate([image], max_tokens=3, draw="greedy")
    assert greedy.tokens == greedy.probs_tv.argmax(-1).tolist()
    again = [
        double.approximate([image], max_tokens=3, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert again[0].tokens == again[1].tokens
