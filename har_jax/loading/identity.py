"""Which weights these are: hashes that a run records, so that others cannot take their place
unseen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from har_jax.data.features.cache import FeatureCache, Origin
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, hub
from har_jax.loading.blueprint import Blueprint
from har_jax.text.tokenizer import CaptionTokenizer

Identity = Mapping[str, Mapping[str, Any]]
"""{"encoder": {"path", "fingerprint"}, "lm": {...}, "tokenizer": {"fingerprint"}}, as in
`run.json`; "revision" too of a model of the hub."""


def identify(
    blueprint: Blueprint, tokenizer: CaptionTokenizer, features: FeatureCache | None = None
) -> Identity:
    """The identity of what a blueprint is built upon; reads the files of weights, once."""
    model = blueprint.model
    if blueprint.encoder_dir is None:
        assert features is not None, "a captioner without an encoder reads a cache"
        encoder: dict[str, Any] = _cache(features)
    else:
        fingerprint = hf_dir.weights_fingerprint(blueprint.encoder_dir)
        encoder = _weights(model.encoder, fingerprint)
        if features is not None:
            encoder["features"] = _cache(features)
    if blueprint.decoder_dir == blueprint.encoder_dir:  # of a LLaVA, which is read once
        lm = _weights(model.lm, encoder["fingerprint"])
    else:
        lm = _weights(model.lm, hf_dir.weights_fingerprint(blueprint.decoder_dir))
    return {"encoder": encoder, "lm": lm, "tokenizer": {"fingerprint": tokenizer.fingerprint}}


def _weights(name: str, fingerprint: str) -> dict[str, Any]:
    """What `run.json` says of them; of a model of the hub the commit too (`loading/pins.py`)."""
    on_hub = hub.named(name)
    revision = {"revision": on_hub.commit} if on_hub and on_hub.commit else {}
    return {"path": str(name), "fingerprint": fingerprint, **revision}


def _cache(features: FeatureCache) -> dict[str, Any]:
    return {"path": str(features.directory), "fingerprint": features.fingerprint}


def check_features(
    blueprint: Blueprint, features: FeatureCache, preprocessor: Preprocessor
) -> None:
    """Refuses a cache that is not what the blueprint's encoder would say.

    Raises:
      UserError: it is stale; says what differs.
    """
    assert blueprint.encoder_dir is not None
    model = blueprint.model
    patches = model.projector == "patch"
    layer, tokens = (model.vision_layer, model.vision_tokens) if patches else (None, "patches")
    weights = hf_dir.weights_fingerprint(blueprint.encoder_dir)
    computed = (model.projector, layer, preprocessor.identity, model.dtype, tokens)
    features.check_origin(Origin(str(model.encoder), weights, *computed))


def check_base(info: Mapping[str, Any], now: Identity, run: str | os.PathLike[str]) -> None:
    """The base weights and tokenizer that a run recorded must be those that are there now.

    Raises:
      UserError: something else is there; says which part.
    """
    for part, found in now.items():
        then = info.get("base", {}).get(part, {})
        if then.get("fingerprint") != found["fingerprint"]:
            where = found.get("path", now["lm"]["path"])
            raise UserError(
                f"{str(run)!r} was trained on another {part} than {where!r} holds now "
                f"(fingerprint {str(then.get('fingerprint'))[:12]} then, "
                f"{found['fingerprint'][:12]} now); put the former back"
            )
