"""The beam search of the published ZeroCap, over any distribution of the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass
class SearchStep:
    """The beams after one token. `source_k`: which beam each continues; `scores_k`: sums."""

    log_probs_kv: np.ndarray
    source_k: np.ndarray
    tokens_k: np.ndarray
    scores_k: np.ndarray
    lengths_k: np.ndarray
    stopped_k: np.ndarray


def search(
    log_probs: Callable[[Tensor, int], Tensor],
    context_1t: Tensor,
    *,
    beams: int,
    steps: int,
    end: int,
) -> tuple[Tensor, Tensor, Tensor, list[SearchStep]]:
    """Beam search by mean log-probability, as published.

    A beam that has ended is continued by token 0 at no cost, and its length stays.

    Args:
      log_probs: [K,V] of the tokens after `context [K,T]` in step i.

    Returns:
      The generated tokens [K,T], their lengths [K], mean log-probabilities [K], and every step.
    """
    first_1v = log_probs(context_1t, 0)
    scores_1k, tokens_1k = first_1v.topk(beams, dim=-1)
    scores_k, tokens_k = scores_1k[0], tokens_1k[0]
    context_kt = torch.cat([context_1t.expand(beams, -1), tokens_k[:, None]], dim=1)
    lengths_k = torch.ones_like(scores_k)
    stopped_k = tokens_k == end
    source_k = torch.zeros_like(tokens_k)
    trace = [_search_step(first_1v, source_k, tokens_k, scores_k, lengths_k, stopped_k)]
    for i in range(1, steps):
        if stopped_k.all():
            break
        log_probs_kv = log_probs(context_kt, i).clone()
        log_probs_kv[stopped_k] = -torch.inf
        log_probs_kv[stopped_k, 0] = 0
        lengths_k = lengths_k + (~stopped_k).to(lengths_k.dtype)
        means_kv = (scores_k[:, None] + log_probs_kv) / lengths_k[:, None]
        means_k, flat_k = means_kv.flatten().topk(beams)
        source_k, tokens_k = flat_k // means_kv.shape[1], flat_k % means_kv.shape[1]
        lengths_k = lengths_k[source_k]
        scores_k = means_k * lengths_k
        context_kt = torch.cat([context_kt[source_k], tokens_k[:, None]], dim=1)
        stopped_k = stopped_k[source_k] | (tokens_k == end)
        step = _search_step(log_probs_kv, source_k, tokens_k, scores_k, lengths_k, stopped_k)
        trace.append(step)
    return context_kt[:, context_1t.shape[1] :], lengths_k, scores_k / lengths_k, trace


def _search_step(*tensors: Tensor) -> SearchStep:
    return SearchStep(*map(to_array, tensors))


def to_array(x: Tensor) -> np.ndarray:
    return x.detach().clone().numpy()
