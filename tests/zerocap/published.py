"""ZeroCap as published, in PyTorch: what the JAX implementation is tested against.

Tewel et al. 2022 (arXiv:2111.14447), by the behaviour of the authors' code (YoadTew/
zero-shot-image-to-text, `model/ZeroCLIP.py` with `--reset_context_delta`), which differs from the
article in places; `ARTICLE` has the article's choices. One image at a time, the beams are the rows.
Nothing here uses `har_jax`, and nothing is cached or batched beyond what the authors do.

`Published.approximate` is the baseline of the HAR paper's repository: the same idea without
gradients or beams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tests.zerocap.beams import SearchStep, search, to_array
from tests.zerocap.frozen import ARTICLE, Cache, Frozen, ImageLike, Settings

__all__ = ["ARTICLE", "Published", "Settings"]

Arrays = list[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Losses:
    """Per beam and unscaled, and their scaled sum."""

    clip_k: Tensor
    fluency_k: Tensor
    total: Tensor


@dataclasses.dataclass
class Iteration:
    """What one of the gradient steps saw and did; `deltas` are those after its update."""

    probs_kv: np.ndarray
    candidates_kc: np.ndarray
    texts: list[list[str]]
    targets_kc: np.ndarray
    clip_k: np.ndarray
    fluency_k: np.ndarray
    total: float
    gradients: Arrays
    deltas: Arrays


@dataclasses.dataclass
class Beam:
    """A finished sentence: ids up to its end, their text, and the mean log-probability."""

    tokens: list[int]
    text: str
    score: float


@dataclasses.dataclass
class Caption:
    """`text` is the best of `beams` by `cosines`, which are those of texts without the prompt."""

    text: str
    with_prompt: str
    best: int
    beams: list[Beam]
    cosines: np.ndarray


@dataclasses.dataclass
class Approximation:
    """`probs_tv[t]` is the distribution that token t of `tokens` was drawn from."""

    caption: str
    tokens: list[int]
    probs_tv: np.ndarray


class Published(Frozen):
    """The algorithm, piece by piece."""

    # ----------------------------------------------------------------------------------- guidance

    def candidates(self, probs_kv: Tensor, context_kt: Tensor) -> tuple[Tensor, list[list[str]]]:
        """Ids [K,C] of the most probable tokens, and the texts they would make."""
        ids_kc = probs_kv.topk(self.settings.candidates, dim=-1).indices
        texts = []
        for row, ids in zip(context_kt, ids_kc, strict=True):
            prefix = self.decode(row).replace(self.tokenizer.bos_token, "")
            # Each token is decoded by itself: a part of a character becomes U+FFFD.
            texts.append([prefix + self.decode([i]) for i in ids])
        return ids_kc, texts

    def clip_targets(self, image_1e: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
        """[K,C]: softmax over the candidates of cosine similarity by temperature."""
        cosines = torch.stack([self.text_features(row) @ image_1e[0] for row in texts])
        return torch.softmax(cosines / self.settings.temperature, dim=-1)

    def losses(
        self, probs_kv: Tensor, before_kv: Tensor, ids_kc: Tensor, targets_kc: Tensor
    ) -> Losses:
        """CLIP's cross-entropy and the divergence from the unguided distribution."""
        s = self.settings
        targets_kv = torch.zeros_like(probs_kv).scatter(1, ids_kc, targets_kc)
        clip_k = -(targets_kv * probs_kv.log()).sum(-1)
        fluency_k = (probs_kv * probs_kv.log() - probs_kv * before_kv.log()).sum(-1)
        total = s.clip_scale * clip_k.sum() + s.fluency_scale * fluency_k.sum()
        return Losses(clip_k, fluency_k, total)

    def shift_context(
        self, image_1e: Tensor, cache: Cache, context_kt: Tensor, before_kv: Tensor
    ) -> tuple[Cache, list[Iteration]]:
        """The cache of all but the last token, moved along the gradients, and how it went."""
        last_k1 = context_kt[:, -1:]
        deltas: Cache = [(torch.zeros_like(k), torch.zeros_like(v)) for k, v in cache]
        trace = []
        for _ in range(self.settings.iterations):
            deltas = [(k.requires_grad_(), v.requires_grad_()) for k, v in deltas]
            probs_kv = torch.softmax(self.logits_after(last_k1, _add(cache, deltas)), dim=-1)
            ids_kc, texts = self.candidates(probs_kv.detach(), context_kt)
            targets_kc = self.clip_targets(image_1e, texts)
            losses = self.losses(probs_kv, before_kv, ids_kc, targets_kc)
            flat = torch.autograd.grad(losses.total, [x for pair in deltas for x in pair])
            gradients = list(zip(flat[::2], flat[1::2], strict=True))
            deltas = _add(_detached(deltas), [self.descent(*pair) for pair in gradients])
            trace.append(
                Iteration(
                    *map(to_array, (probs_kv, ids_kc)),
                    texts,
                    *map(to_array, (targets_kc, losses.clip_k, losses.fluency_k)),
                    losses.total.item(),
                    _arrays(gradients),
                    _arrays(deltas),
                )
            )
        return _add(cache, deltas), trace

    def descent(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to one layer's deltas for these gradients."""
        s = self.settings

        def norm_k(x: Tensor) -> Tensor:
            return x.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()

        norms = norm_k(keys), norm_k(values)
        if s.joint_norm:
            norms = (torch.hypot(*norms),) * 2
        moves = (
            -s.step_size * x / (n + s.norm_epsilon) ** s.norm_exponent
            for x, n in zip((keys, values), norms, strict=True)
        )
        first, second = moves
        return first, second

    # --------------------------------------------------------------------------- the next token

    def adjust(self, logits_kv: Tensor, context_kt: Tensor, i: int) -> Tensor:
        """Logits of step `i` with repetition, end, and forbidden tokens made less or more likely.

        A factor divides a positive logit, and multiplies one that is zero or negative.
        """
        s, logits_kv = self.settings, logits_kv.clone()

        def weaken(k: int, token: int, factor: float) -> None:
            logits_kv[k, token] /= factor if logits_kv[k, token] > 0 else 1 / factor

        for k in range(len(logits_kv)):
            for token in self.recent(context_kt[k], i):
                weaken(k, token, s.repetition_penalty)
            if i >= s.end_from:
                weaken(k, self.end, 1 / s.end_factor)
            if i == 0:
                weaken(k, self.end, s.start_factor)
            for token in s.forbidden:
                weaken(k, token, s.forbidden_factor)
        return logits_kv

    def recent(self, context_t: Tensor, i: int) -> set[int]:
        """The tokens that a repetition penalty is about in step `i`."""
        window = self.settings.repeat_window
        window = window if self.settings.repeat_prompt else min(window, i)
        return set(context_t[len(context_t) - window :].tolist())

    def next_probs(self, image_1e: Tensor, context_kt: Tensor, i: int) -> Tensor:
        """[K,V] of step `i`. As published, all rows together sum to one."""
        s = self.settings
        with torch.no_grad():
            _, cache = self.read(context_kt[:, :-1])
            before_kv = torch.softmax(self.read(context_kt)[0], dim=-1)
        cache, _ = self.shift_context(image_1e, cache, context_kt, before_kv)
        with torch.no_grad():
            logits_kv = self.logits_after(context_kt[:, -1:], cache)
            probs_kv = torch.softmax(self.adjust(logits_kv, context_kt, i), dim=-1)
            for k, row in enumerate(context_kt):
                probs_kv[k, list(self.recent(row, i))] *= s.repeat_probability
            probs_kv = probs_kv**s.fusion * before_kv ** (1 - s.fusion)
            total = probs_kv.sum() if s.normalise_jointly else probs_kv.sum(-1, keepdim=True)
            return probs_kv / total

    def next_log_probs(self, image_1e: Tensor, context_kt: Tensor, i: int) -> Tensor:
        """Logarithms of `next_probs`."""
        return self.next_probs(image_1e, context_kt, i).log()

    # -------------------------------------------------------------------------------- the caption

    def beam_search(self, image_1e: Tensor) -> tuple[list[Beam], list[SearchStep]]:
        """The beams, best first, and how they grew."""
        s = self.settings
        tokens_kt, lengths_k, scores_k, trace = search(
            lambda context_kt, i: self.next_log_probs(image_1e, context_kt, i),
            self.context(),
            beams=s.beams,
            steps=s.steps,
            end=self.end,
        )
        beams = []
        for k in scores_k.argsort(descending=True).tolist():
            tokens = tokens_kt[k, : int(lengths_k[k])].tolist()
            beams.append(Beam(tokens, self.decode(tokens), float(scores_k[k])))
        return beams, trace

    def caption(
        self, images: Sequence[ImageLike], weights: Sequence[float] | None = None
    ) -> Caption:
        """The beam nearest to the image, the prompt left out of the comparison."""
        image_1e = self.image_feature(images, weights)
        beams, _ = self.beam_search(image_1e)
        # One by one, as the authors do: no row is padded to the length of another.
        features = torch.cat([self.text_features([beam.text]) for beam in beams])
        cosines_k = features @ image_1e[0]
        best = int(cosines_k.argmax())
        text = beams[best].text
        return Caption(text, self.settings.prompt + text, best, beams, cosines_k.numpy())

    # --------------------------------------------------------------------- without gradients

    @torch.no_grad()
    def approximate_step(
        self, image_1e: Tensor, tokens: Sequence[int], *, top_k: int = 50, strength: float = 1.0
    ) -> Tensor:
        """[V]: the language model's top tokens, weighed by 100 times their texts' cosines."""
        logits_v = self.read(torch.tensor([list(tokens)]))[0][0]
        top = logits_v.topk(top_k).indices
        texts = [self.plain([*tokens, int(i)]) for i in top]
        scores = 100 * (self.text_features(texts) @ image_1e[0])
        guidance_v = torch.full_like(logits_v, -1e9).scatter(0, top, strength * scores)
        return torch.softmax(torch.log_softmax(logits_v, dim=-1) + guidance_v, dim=-1)

    def approximate(
        self,
        images: Sequence[ImageLike],
        prompt: str = "A photo of a",
        *,
        max_tokens: int = 30,
        top_k: int = 50,
        strength: float = 1.0,
        forced: Sequence[int] | None = None,
        draw: Literal["greedy", "multinomial"] = "multinomial",
        generator: torch.Generator | None = None,
    ) -> Approximation:
        """The HAR repository's baseline. The prompt follows no start token and is in the caption.

        Args:
          forced: the tokens to take instead of drawing any; as many steps as there are tokens.
        """
        image_1e = self.image_feature(images)
        prefix, drawn, rows = self.tokenizer.encode(prompt), [], []
        for t in range(max_tokens if forced is None else len(forced)):
            probs_v = self.approximate_step(
                image_1e, [*prefix, *drawn], top_k=top_k, strength=strength
            )
            rows.append(probs_v.numpy())
            if forced is not None:
                drawn.append(int(forced[t]))
            elif draw == "greedy":
                drawn.append(int(probs_v.argmax()))
            else:
                drawn.append(int(torch.multinomial(probs_v, 1, generator=generator)))
            if forced is None and drawn[-1] == self.tokenizer.eos_token_id:
                break
        return Approximation(self.plain([*prefix, *drawn]).strip(), drawn, np.stack(rows))


def _add(left: Cache, right: Cache) -> Cache:
    return [(k + dk, v + dv) for (k, v), (dk, dv) in zip(left, right, strict=True)]


def _detached(cache: Cache) -> Cache:
    return [(k.detach(), v.detach()) for k, v in cache]


def _arrays(pairs: Cache) -> Arrays:
    return [(to_array(k), to_array(v)) for k, v in pairs]
