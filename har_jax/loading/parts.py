"""A captioner but for its weights: blueprint, tokenizer and preprocessing, read and found to
fit."""

from __future__ import annotations

import dataclasses
import functools
import logging

from har_jax.config import Config, ModelConfig
from har_jax.data.features.cache import FeatureCache
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, llava
from har_jax.loading.blueprint import Blueprint, draw
from har_jax.loading.identity import Identity, check_features, identify
from har_jax.text.tokenizer import CaptionTokenizer, load_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parts:
    """See the module's docstring.

    Attributes:
      preprocessor: None where features are imported, and images cannot be encoded.
      features: the cache that stands in for the encoder, if one does.
    """

    blueprint: Blueprint
    tokenizer: CaptionTokenizer
    preprocessor: Preprocessor | None
    features: FeatureCache | None = None

    @functools.cached_property
    def identity(self) -> Identity:
        """Hashes of weights and tokenizer; the files of weights are read for it."""
        return identify(self.blueprint, self.tokenizer, self.features)


def read_parts(model: ModelConfig, features: FeatureCache | None = None) -> Parts:
    """Reads what a model section names; with `features`, its batches carry features, not images.

    Raises:
      UserError: something is missing, does not belong together, or the cache is stale.
    """
    if not model.encoder:
        _check_import(model, features)
    blueprint = draw(model, None if features is None else features.shape)
    directory = blueprint.encoder_dir
    preprocessor = None if directory is None else Preprocessor.from_hf(directory)
    tokenizer = load_tokenizer(blueprint.decoder_dir)
    if features is not None and preprocessor is not None:
        check_features(blueprint, features, preprocessor)
    of_llava = hf_dir.is_llava(blueprint.decoder_dir)
    image_id = llava.image_id(blueprint.decoder_dir) if of_llava else None
    return Parts(blueprint.with_text(tokenizer, image_id), tokenizer, preprocessor, features)


def read_run_parts(config: Config) -> Parts:
    """What a run's captioner is built upon, its encoder too.

    A run on imported features has none: what it reads is known from their cache only.
    """
    imported = not config.model.encoder and config.data.features
    return read_parts(config.model, FeatureCache(config.data.features) if imported else None)


def _check_import(model: ModelConfig, features: FeatureCache | None) -> None:
    """Without an encoder there must be a cache of imported features, of the projector's kind."""
    if features is None or not features.origin.imported:
        raise UserError(
            "config.model.encoder is not set; give the HF directory of the encoder"
            + (f", {features.origin.encoder!r}" if features else ": --config.model.encoder=DIR")
        )
    if features.origin.kind != model.projector:
        raise UserError(
            f"feature cache {features.directory} holds {features.shape[0]} x {features.shape[1]} "
            f"features for config.model.projector={features.origin.kind!r}, but the configuration "
            f"says {model.projector!r}; set --config.model.projector={features.origin.kind}"
        )
