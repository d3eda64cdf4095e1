"""The captioner: a frozen image encoder, a projector and a decoder, as four verbs.

    features = captioner.encode(images)            # [B,S,Dv]
    prefix   = captioner.project(features)         # [B,P,D]
    cache    = captioner.prefill(prefix)           # keys and values of the prefix, once per image
    logp     = captioner.score(cache, captions)    # [B,R,T], R captions of each image

and `har_jax.decoding.decode(captioner, cache, plan, key)` writes captions. The decoder reads
BOS (if it has one), the P visual tokens, the prompt's tokens (if any), then the caption.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from har_jax.config import CaptionerSettings, VisionTokens
from har_jax.errors import UserError
from har_jax.models.attention import KV, KVCache
from har_jax.models.decoders.protocol import Decoder, DecoderConfig
from har_jax.models.decoders.transformer import Adapt
from har_jax.models.encoders.protocol import Encoder, EncoderConfig
from har_jax.models.logprobs import TokenScores, score_tokens
from har_jax.models.projector import Projector, ProjectorKind
from har_jax.types import Array, DTypeLike, Float, Int

NEVER = -1e9
"""A logit that is never drawn; finite, for an entropy multiplies it by its probability, 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerConfig(CaptionerSettings):
    """Everything that fixes the parameters' shapes and how images and text reach the decoder.

    Without a `vision` tower the captioner is given features, of the shape `features`.
    """

    vision: EncoderConfig | None
    lm: DecoderConfig
    features: tuple[int, int] | None = None  # (S, Dv), where there is no tower
    bos_id: int | None = 1  # None: the decoder's texts begin without one
    eos_ids: tuple[int, ...] = (2,)  # any of them ends a caption; the first fills what follows
    prompt_ids: tuple[int, ...] = ()  # after the image, without BOS
    # Rows of the vocabulary that no token has, as ranges of ids: they are never written.
    wordless: tuple[tuple[int, int], ...] = ()

    @property
    def visual_tokens(self) -> int:
        """P: how many prefix tokens an image becomes."""
        return self.features_shape[0] if self.projector == "patch" else self.prefix_tokens

    @property
    def prefix_length(self) -> int:
        """What the decoder reads before a caption: BOS, visual tokens, prompt."""
        return (self.bos_id is not None) + self.visual_tokens + len(self.prompt_ids)

    def check_places(self, max_tokens: int) -> None:
        """`UserError` where captions would go on behind the last learned position (GPT-2's)."""
        most = getattr(self.lm, "most_positions", None)
        before = self.prefix_length - 1  # no place is needed for a caption's last token
        if most is not None and before + max_tokens > most:
            raise UserError(
                f"captions of max_tokens={max_tokens} after {self.prefix_length} tokens (BOS, "
                f"{self.visual_tokens} visual ones and the prompt's {len(self.prompt_ids)}) need "
                f"{before + max_tokens} places, but this {self.lm.model_type} has learned "
                f"positions for {most}; lower max_tokens to at most {max(most - before, 0)}, "
                "shorten the prompt, or use projector=pooled"
            )

    @property
    def features_shape(self) -> tuple[int, int]:
        """(S, Dv) of what the projector reads."""
        if self.vision is not None:
            vision, tokens = self.vision, 1
            if self.projector == "patch":
                first = first_token(vision, self.vision_tokens)
                tokens = vision.n_extra + vision.n_patches - first
            return tokens, vision.hidden_size
        if self.features is None:
            raise ValueError("a captioner without a vision tower needs `features`, their shape")
        return self.features


class PrefixCache(NamedTuple):
    """What an image leaves in the decoder.

    The last input of the prefix is not in the cache yet: it is what every caption reads first, and
    its output predicts the caption's first token.
    """

    kv: KVCache  # per layer K, V [B,K,P',H]
    last_bd: Array  # [B,D]


class Captioner(nnx.Module):
    """See the module's docstring."""

    def __init__(
        self,
        config: CaptionerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        vision_dtype: DTypeLike | None = None,
        lm_dtype: DTypeLike | None = None,
        adapt: Adapt | None = None,
    ):
        """`dtype` is that of the projector, and of the others where they are given none of their
        own; `adapt` goes to the decoder."""
        self.config = config
        tower = config.vision
        layout = {"scan_layers": config.scan_layers, "attention": config.attention}
        seeing = {"rngs": rngs, "dtype": vision_dtype or dtype, **layout}
        self.vision: Encoder | None = None if tower is None else tower.build(**seeing)
        self.projector = new_projector(config, rngs=rngs, dtype=dtype)
        options = {"remat": config.remat, "adapt": adapt, **layout}
        self.lm: Decoder = config.lm.build(rngs=rngs, dtype=lm_dtype or dtype, **options)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    def for_decoding(self) -> Captioner:
        """This captioner with its decoder's layers apart (`Decoder.for_decoding`)."""
        lm = self.lm.for_decoding()
        if lm is self.lm:
            return self
        apart = nnx.merge(*nnx.split(self))
        apart.lm = lm
        return apart

    @jax.named_scope("encode")
    def encode(
        self, images: Float[Array, "B H W C"] | Float[Array, "B S Dv"]
    ) -> Float[Array, "B S Dv"]:
        """Normalised pixels to vision features: tokens of one layer, or the pooled vector (S=1).

        The tower is frozen: no gradient flows into it. Features that a cache has given already
        come back as they are.
        """
        config = self.config
        if images.ndim == 3:
            if images.shape[1:] != config.features_shape:
                raise UserError(
                    f"features of shape {list(images.shape[1:])} per image, but this captioner "
                    f"reads {list(config.features_shape)}"
                )
            return jax.lax.stop_gradient(images)
        if self.vision is None:
            raise UserError(
                "this captioner has no encoder of images: it reads features "
                f"[B, {config.features_shape[0]}, {config.features_shape[1]}]"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"pixels of dtype {images.dtype}, but an encoder reads them normalised, as floats; "
                "preprocess them (`LoadedCaptioner.preprocess`)"
            )
        images = images.astype(self.compute_dtype)
        which = (config.projector, config.vision_layer, config.vision_tokens)
        features = vision_features(self.vision, images, *which)
        return jax.lax.stop_gradient(features)

    @jax.named_scope("project")
    def project(self, features: Float[Array, "B S Dv"]) -> Float[Array, "B P D"]:
        """W_proj: the soft visual prefix."""
        return self.projector(features.astype(self.compute_dtype))

    @jax.named_scope("prefill")
    def prefill(self, prefix: Float[Array, "B P D"]) -> PrefixCache:
        """Keys and values of BOS, the visual prefix and the prompt, once per image."""
        b, _, d = prefix.shape

        def text(ids: tuple[int, ...]) -> list[Array]:
            if not ids:
                return []
            embedded = self.lm.embed(jnp.asarray(ids, jnp.int32), prefix.dtype)
            return [jnp.broadcast_to(embedded, (b, len(ids), d))]

        bos = () if self.config.bos_id is None else (self.config.bos_id,)
        x_bpd = jnp.concatenate([*text(bos), prefix, *text(self.config.prompt_ids)], axis=1)
        if x_bpd.shape[1] == 1:  # a single visual token: nothing lies before what is read first
            _, kv = self.lm.prefill(x_bpd)
            return PrefixCache(tuple(KV(k[:, :, :0], v[:, :, :0]) for k, v in kv), x_bpd[:, -1])
        _, kv = self.lm.prefill(x_bpd[:, :-1])
        return PrefixCache(kv, x_bpd[:, -1])

    def logits(self, cache: PrefixCache, tokens: Int[Array, "B R T"]) -> Float[Array, "B R T V"]:
        """Teacher forcing: float32 logits that predict each token of R known captions per image.

        All of them at once; `token_scores` never holds more than a block.
        """
        return self.next_logits(self._predicting(cache, tokens))

    def next_logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """The decoder's logits of the next token; a row without a word gets one so low that its
        probability is 0.

        What writes, what scores and what trains all ask here, so that a policy is scored as the
        distribution that it was drawn from.
        """
        logits = self.lm.logits(hidden)
        if not self.config.wordless:
            return logits
        none = np.zeros(logits.shape[-1], bool)
        for first, stop in self.config.wordless:
            none[first:stop] = True
        return jnp.where(none, NEVER, logits)

    def _predicting(self, cache: PrefixCache, tokens: Int[Array, "B R T"]) -> Array:
        """The hidden state `[B,R,T,D]` that each token is predicted from."""
        b, r, _ = tokens.shape
        d = cache.last_bd.shape[-1]
        first = jnp.broadcast_to(cache.last_bd[:, None, None], (b, r, 1, d))
        known = self.lm.embed(tokens[:, :, :-1], first.dtype)
        return self.lm.extend(jnp.concatenate([first, known], axis=2), cache.kv)

    @jax.named_scope("score")
    def token_scores(
        self, cache: PrefixCache, tokens: Int[Array, "B R T"], *, temperature: float = 1.0
    ) -> TokenScores:
        """Of R captions per image: log P(y_t | y_<t, p) under logits / temperature, the entropy
        of the distribution at each place, and whether the token is its likeliest.

        Positions after a caption's end hold values without meaning: mask them by length
        (`logprobs.length_mask`), never by id, for Mistral has no pad token.
        """
        hidden = self._predicting(cache, tokens)
        return score_tokens(self.next_logits, hidden, tokens, temperature)

    def score(
        self, cache: PrefixCache, tokens: Int[Array, "B R T"], *, temperature: float = 1.0
    ) -> Float[Array, "B R T"]:
        """The log-probabilities of `token_scores` alone."""
        return self.token_scores(cache, tokens, temperature=temperature).logp


def new_projector(config: CaptionerConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> Projector:
    """The projector of a captioner, with random parameters."""
    widths = (config.features_shape[1], config.lm.hidden_size)
    sizes = {"hidden": config.projector_hidden, "prefix_tokens": config.prefix_tokens}
    return Projector(config.projector, *widths, **sizes, rngs=rngs, dtype=dtype)


def first_token(vision: EncoderConfig, tokens: VisionTokens) -> int:
    """The first token of a layer that `vision_tokens` means; all that follow are read."""
    return {"patches": vision.n_extra, "all": 0, "after_first": 1}[tokens]


def vision_features(
    tower: Encoder,
    images: Float[Array, "B H W C"],
    kind: ProjectorKind,
    layer: int,
    tokens: VisionTokens = "patches",
) -> Float[Array, "B S Dv"]:
    """What a projector of this kind reads: tokens of one layer, or the pooled vector (S=1).

    LLaVA reads the patches of layer -2 (arXiv:2304.08485): the last layer of a tower trained only
    through its class token need not keep its patches informative.
    """
    if kind == "patch":
        return tower.hidden(images, layer)[:, first_token(tower.config, tokens) :]
    return tower.pooled(images)[:, None]
