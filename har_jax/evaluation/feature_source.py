"""Which feature cache, if any, an evaluation reads instead of encoding images."""

from __future__ import annotations

import logging
import os
import pathlib

from har_jax.config import Config
from har_jax.data.dataset import Split
from har_jax.data.features.cache import FeatureCache
from har_jax.errors import UserError
from har_jax.loading.parts import read_parts

log = logging.getLogger(__name__)


def features_for(config: Config, split: Split, given: str | None) -> FeatureCache | None:
    """The cache that holds a split for a run, or None: its images are to be encoded.

    Args:
      given: the directory of another cache, or "none" to encode the images.

    Raises:
      UserError: the cache is stale or damaged, one that was asked for lacks the split, or there is
        none and the run cannot encode images.
    """
    imported = not config.model.clip
    if given == "none":
        if imported:
            raise UserError(
                "this run reads imported features and cannot encode images: --features=none cannot "
                "be; give a cache of its features"
            )
        return None
    directory = given or config.data.features
    if not directory:
        return None
    needed = imported or given is not None
    if not needed and not os.path.exists(directory):
        log.info("the run's feature cache %s is gone; images are encoded", directory)
        return None
    cache = FeatureCache(directory)
    if not imported:
        read_parts(config.model, cache)  # refuses a stale one
    elif given is not None:
        _same_import(FeatureCache(config.data.features), cache)
    own_data = split.directory == pathlib.Path(config.data.dir)
    if not needed and not (own_data and cache.covers(split)):
        return None
    cache.of(split)
    return cache


def _same_import(own: FeatureCache, other: FeatureCache) -> None:
    """Imports have no weights to compare: their names and shapes must agree."""
    if (own.origin.encoder, own.shape) != (other.origin.encoder, other.shape):
        raise UserError(
            f"--features={other.directory} holds {other.shape} of {other.origin.encoder!r}, but "
            f"the run was trained on {own.shape} of {own.origin.encoder!r}; import features of the "
            "same encoder under the same --name"
        )
