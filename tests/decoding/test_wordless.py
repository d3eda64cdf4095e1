"""Rows of a vocabulary that no token has: never written, and scored as never written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from har_jax.decoding.beam import beam_search
from har_jax.decoding.loop import decode
from har_jax.decoding.plan import DecodePlan
from tests.helpers import images, long, small_captioner

WORDLESS = ((4, 6), (11, 14))
FREE = [i for first, stop in WORDLESS for i in range(first, stop)]


@pytest.fixture(scope="module")
def pair():
    """A captioner that likes such rows best, and the same with them masked."""
    plain = small_captioner()
    kernel = plain.lm.lm_head.kernel
    kernel.set_value(kernel[...].at[:, jnp.array(FREE)].multiply(3.0))
    masked = small_captioner(wordless=WORDLESS)
    masked.lm.lm_head.kernel.set_value(kernel[...])
    return plain, masked


def prefilled(captioner, b=4):
    return captioner.prefill(captioner.project(captioner.encode(images(b))))


@pytest.mark.parametrize(
    "how", [{"temperature": 3.0}, {"top_p": 0.9}, *long([{}, {"top_k": 9}])], ids=str
)
def test_no_row_without_a_word_is_written_and_the_rest_is_scored_as_it_was_drawn(pair, how):
    plain, masked = pair
    plan = DecodePlan(6, greedy=True, samples=40, **how)
    found = jax.jit(lambda: decode(masked, prefilled(masked), plan, jax.random.key(1)))()
    for captions in found:
        assert not np.isin(captions.tokens, FREE).any()
    other = jax.jit(lambda: decode(plain, prefilled(plain), plan, jax.random.key(1)))()
    assert np.isin(other.samples.tokens, FREE).any(), "the test shows nothing"
    if not plan.truncates:
        rows = found.samples
        scores = jax.jit(
            lambda: masked.token_scores(
                prefilled(masked), rows.tokens, temperature=plan.temperature
            )
        )()
        seen = np.arange(6) < np.asarray(rows.lengths)[..., None]
        np.testing.assert_allclose(
            np.where(seen, scores.logp, 0), np.where(seen, rows.logp, 0), atol=2e-4
        )
        assert np.isfinite(scores.entropy).all() and (np.asarray(scores.entropy) > -1e-4).all()


def test_beams_have_words_only(pair):
    _, masked = pair
    found = jax.jit(lambda: beam_search(masked, prefilled(masked), beams=5, max_tokens=5))()
    assert not np.isin(found.tokens, FREE).any()


def test_a_full_vocabulary_compiles_to_the_same_program(pair):
    plain, _ = pair
    hidden = jnp.zeros((2, 3, 16))
    ours = jax.make_jaxpr(plain.next_logits)(hidden)
    assert str(ours) == str(jax.make_jaxpr(plain.lm.logits)(hidden))


def test_the_tokenizer_says_which_rows_have_words(workspace, tmp_path):
    from har_jax.loading.parts import read_parts
    from tests.test_export import configure

    parts = read_parts(configure(workspace, tmp_path / "run").model)
    blueprint, n = parts.blueprint, parts.tokenizer.vocab_size
    lm = dataclasses.replace(blueprint.config.lm, vocab_size=n + 5)
    longer = dataclasses.replace(
        blueprint, config=dataclasses.replace(blueprint.config, lm=lm)
    ).with_text(parts.tokenizer, image_id=7)
    assert longer.config.wordless == ((n, n + 5), (7, 8))
    assert longer.with_text(parts.tokenizer, image_id=n - 1).config.wordless == ((n - 1, n + 5),)
