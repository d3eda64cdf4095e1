"""The captioner: a frozen CLIP vision tower, a projector and a Mistral, as four verbs.

    features = captioner.encode(images)            # [B,S,Dv]
    prefix   = captioner.project(features)         # [B,P,D]
    cache    = captioner.prefill(prefix)           # keys and values of the prefix, once per image
    logp     = captioner.score(cache, captions)    # [B,R,T], R captions of each image

and `har_jax.decoding.decode(captioner, cache, plan, key)` writes captions. The decoder reads
`<bos>`, the P visual tokens, the prompt's tokens (if any), then the caption.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from har_jax.errors import UserError
from har_jax.models.attention import Cache
from har_jax.models.decoders.mistral import Adapt, Mistral, MistralConfig
from har_jax.models.encoders.clip import VisionConfig, VisionTower
from har_jax.models.projector import Projector, ProjectorKind
from har_jax.types import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class CaptionerConfig:
    """Everything that fixes the parameters' shapes and how images and text reach the decoder.

    Without a `vision` tower the captioner is given features, of the shape `features`.
    """

    vision: VisionConfig | None
    lm: MistralConfig
    projector: ProjectorKind = "patch"
    prefix_tokens: int = 10  # of a pooled projector
    projector_hidden: int = 0  # 0: the decoder's width
    vision_layer: int = -2  # whose patch tokens a patch projector reads; -2 as LLaVA does
    features: tuple[int, int] | None = None  # (S, Dv), where there is no tower
    prompt: tuple[int, ...] = ()  # token ids after the image, without <bos>
    remat: str = "none"
    scan_layers: bool = False  # how the decoder's parameters lie: see `Mistral`
    fused: bool = False
    dtype: str = "float32"  # of the activations

    @property
    def visual_tokens(self) -> int:
        """P: how many prefix tokens an image becomes."""
        return self.features_shape[0] if self.projector == "patch" else self.prefix_tokens

    @property
    def features_shape(self) -> tuple[int, int]:
        """(S, Dv) of what the projector reads."""
        if self.vision is not None:
            return (
                self.vision.n_patches if self.projector == "patch" else 1,
                self.vision.hidden_size,
            )
        if self.features is None:
            raise ValueError("a captioner without a vision tower needs `features`, their shape")
        return self.features


class Prefix(NamedTuple):
    """What an image leaves in the decoder.

    The last input of the prefix is not in the cache yet: it is what every caption reads first, and
    its output predicts the caption's first token.
    """

    kv: Cache  # per layer K, V [B,P',Hkv,Dh]
    last_bd: Array  # [B,D]


class Captioner(nnx.Module):
    def __init__(
        self,
        config: CaptionerConfig,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
        vision_dtype: jnp.dtype | None = None,
        adapt: Adapt | None = None,
    ):
        """`dtype` is that of the trained parameters, `vision_dtype` that of the frozen tower;
        `adapt` goes to the decoder."""
        self.config = config
        self.vision = (
            None
            if config.vision is None
            else VisionTower(config.vision, rngs=rngs, dtype=vision_dtype or dtype)
        )
        self.projector = Projector(
            config.projector,
            config.features_shape[1],
            config.lm.hidden_size,
            hidden=config.projector_hidden,
            prefix_tokens=config.prefix_tokens,
            rngs=rngs,
            dtype=dtype,
        )
        self.lm = Mistral(
            config.lm,
            rngs=rngs,
            dtype=dtype,
            remat=config.remat,
            scan_layers=config.scan_layers,
            fused=config.fused,
            adapt=adapt,
        )

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.dtype)

    def for_decoding(self) -> Captioner:
        """This captioner with its decoder's layers apart (`Mistral.for_decoding`)."""
        lm = self.lm.for_decoding()
        if lm is self.lm:
            return self
        apart = nnx.merge(*nnx.split(self))
        apart.lm = lm
        return apart

    def encode(
        self, images: Float[Array, "B H W 3"] | Float[Array, "B S Dv"]
    ) -> Float[Array, "B S Dv"]:
        """Normalised pixels to vision features: patch tokens of one layer, or the pooled CLS (S=1).

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
        images = images.astype(self.compute_dtype)
        features = vision_features(self.vision, images, config.projector, config.vision_layer)
        return jax.lax.stop_gradient(features)

    def project(self, features: Float[Array, "B S Dv"]) -> Float[Array, "B P D"]:
        """W_proj: the soft visual prefix."""
        return self.projector(features.astype(self.compute_dtype))

    def prefill(self, prefix: Float[Array, "B P D"]) -> Prefix:
        """Keys and values of `<bos>`, the visual prefix and the prompt, once per image."""
        b, _, d = prefix.shape

        def text(*ids: int) -> Array:
            embedded = self.lm.embed(jnp.asarray(ids, jnp.int32), prefix.dtype)
            return jnp.broadcast_to(embedded, (b, len(ids), d))

        inputs = [text(self.config.lm.bos_token_id), prefix]
        if self.config.prompt:
            inputs.append(text(*self.config.prompt))
        x_bpd = jnp.concatenate(inputs, axis=1)
        _, kv = self.lm.prefill(x_bpd[:, :-1])
        return Prefix(kv, x_bpd[:, -1])

    def logits(self, cache: Prefix, tokens: Int[Array, "B R T"]) -> Float[Array, "B R T V"]:
        """Teacher forcing: float32 logits that predict each token of R known captions per image."""
        b, r, _ = tokens.shape
        d = cache.last_bd.shape[-1]
        first = jnp.broadcast_to(cache.last_bd[:, None, None], (b, r, 1, d))
        known = self.lm.embed(tokens[:, :, :-1], first.dtype)
        hidden = self.lm.extend(jnp.concatenate([first, known], axis=2), cache.kv)
        return self.lm.logits(hidden)

    def score(
        self,
        cache: Prefix,
        tokens: Int[Array, "B R T"],
        *,
        temperature: float = 1.0,
    ) -> Float[Array, "B R T"]:
        """log P(y_t | y_<t, p) of R captions per image, under logits / temperature.

        Positions after a caption's end hold values without meaning: mask them by length
        (`length_mask`), never by id, for Mistral has no pad token.
        """
        logits = self.logits(cache, tokens) / temperature
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)


def vision_features(
    tower: VisionTower, images: Float[Array, "B H W 3"], kind: ProjectorKind, layer: int
) -> Float[Array, "B S Dv"]:
    """What a projector of this kind reads: patch tokens of one layer, or the pooled CLS (S=1)."""
    if kind == "patch":
        return tower.features(images, layer=layer)
    return tower.pooled(images)[:, None]


def length_mask(lengths: Int[Array, "B R"], max_tokens: int) -> Float[Array, "B R T"]:
    """1 for the tokens of a caption, its EOS included, and 0 after; all 0 for a padded row."""
    return (jnp.arange(max_tokens) < lengths[..., None]).astype(jnp.float32)
