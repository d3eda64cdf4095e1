"""BLEU from words, in one call: the parts that `metrics.corpus` puts together."""

from har_jax.metrics.bleu_counts import bleu_counts_of, bleu_of_counts
from har_jax.metrics.corpus_ngrams import count_ngrams


def bleu_counts(references, predictions, *, n=4):
    """int64 [I, 2n+2], a row per prediction."""
    return bleu_counts_of(count_ngrams(references, predictions, n=n, metric="BLEU"))


def corpus_bleu(references, predictions, *, n=4):
    """[BLEU-1, ..., BLEU-n] of the corpus, and {image id: the same of this image}."""
    counts = bleu_counts(references, predictions, n=n)
    per_image = bleu_of_counts(counts).tolist()
    return bleu_of_counts(counts.sum(0)).tolist(), dict(zip(predictions, per_image, strict=True))
