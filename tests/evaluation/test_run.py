"""Captioning batch by batch: padding is dropped, and what reached EOS is known."""

import numpy as np
import pytest

from har_jax.evaluation.run import caption_batches

EOS = 2


def batches(n, size):
    """As `eval_batches` makes them: the last one padded by repetition."""
    for start in range(0, n, size):
        ids = np.arange(start, start + size)
        yield {
            "image": np.minimum(ids, n - 1)[:, None, None, None].astype(np.float32),
            "image_id": np.minimum(ids, n - 1) + 100,
            "valid": ids < n,
        }


def generate(pixels, number):
    """Image k gets the tokens [k, EOS], every third one [k, k, k, k] without an end."""
    del number
    k = pixels[:, 0, 0, 0].astype(np.int32)
    tokens = np.full((len(k), 4), EOS, np.int32)
    tokens[:, 0] = k + 10
    cut = k % 3 == 0
    tokens[cut] = (k[cut] + 10)[:, None]
    return tokens, np.where(cut, 4, 2)


def decode_texts(tokens, lengths):
    return [
        " ".join(str(t) for t in row[:n] if t != EOS)
        for row, n in zip(tokens, lengths, strict=True)
    ]


def caption(n, size, n_images=None):
    return caption_batches(
        batches(n, size), generate, decode_texts, n_images=n_images or n, eos_id=EOS
    )


def test_every_image_once_with_its_own_caption():
    found = caption(7, 4)
    assert list(found.texts) == [100 + k for k in range(7)]
    assert found.texts[101] == "11" and found.texts[106] == "16 16 16 16"
    assert [found.ended[100 + k] for k in range(7)] == [k % 3 != 0 for k in range(7)]
    assert found.cut_rate == pytest.approx(3 / 7)


def test_the_batch_size_changes_nothing():
    assert caption(7, 4) == caption(7, 7) == caption(7, 1)


def test_a_limit_stops_early():
    calls = []

    def counting(pixels, number):
        calls.append(number)
        return generate(pixels, number)

    found = caption_batches(batches(9, 3), counting, decode_texts, n_images=4, eos_id=EOS)
    assert list(found.texts) == [100, 101, 102, 103] and calls == [0, 1]
