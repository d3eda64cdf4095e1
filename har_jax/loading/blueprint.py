"""The parts of a captioner: read and checked without a device, then loaded into their shards.

`read_foundation` reads what the configuration names (configs, tokenizer, preprocessing, hashes);
`load_*_params` bring the weights in, and `is_trained` says which of them learn.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from har_jax.checkpoint import Checkpoints, abstract
from har_jax.config import Config, ModelConfig
from har_jax.data.features.cache import FeatureCache, Origin
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.families.clip import load_vision, read_vision_config
from har_jax.interchange.families.mistral import load_mistral
from har_jax.models import lora
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.decoders.mistral import MistralConfig
from har_jax.models.encoders.clip import VisionConfig
from har_jax.models.functional import Params, Structure, prefixed, split, structure_of
from har_jax.models.layouts import convert
from har_jax.models.projector import Projector
from har_jax.sharding import RULES, Rules
from har_jax.text.tokenizer import CaptionTokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Foundation:
    """What a captioner is built upon, read without touching a device."""

    config: CaptionerConfig
    tokenizer: CaptionTokenizer
    preprocessor: Preprocessor | None  # None: features are imported, images cannot be encoded
    base: Mapping[str, Any]  # where the weights came from: {"clip": {path, fingerprint}, "lm": …}

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> Captioner:
        """A captioner with random parameters and, if asked for, adapters on its decoder.

        Call it where nothing is allocated: abstractly, or inside `jax.jit`.
        """
        dtype = jnp.dtype(model.param_dtype)

        def adapt(block: nnx.Module, rngs: nnx.Rngs) -> None:  # before its layers are stacked
            lora.attach(block, model.lora, rngs=rngs, dtype=dtype, prefix="layers")

        captioner = Captioner(
            self.config,
            rngs=rngs,
            dtype=dtype,
            vision_dtype=jnp.dtype(model.frozen_dtype),
            adapt=adapt if model.lora.rank and self.config.scan_layers else None,
        )
        if model.lora.rank:
            lora.attach(captioner.lm, model.lora, rngs=rngs, dtype=dtype)
            lora.check_targets(captioner.lm, model.lora)
        return captioner

    def structure(self, model: ModelConfig) -> Structure[Captioner]:
        """What a captioner of this configuration is; no device is touched."""
        return structure_of(lambda: self.build(model, nnx.Rngs(0)))


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Where vision features come from: a CLIP's tower, a cache of what it said, or anywhere."""

    vision: VisionConfig | None  # None: no tower is loaded
    features: tuple[int, int] | None  # (S, Dv) where there is no tower
    preprocessor: Preprocessor | None
    base: Mapping[str, Any]  # for `Foundation.base`


def read_encoder(model: ModelConfig, cache: FeatureCache | None = None) -> Encoder:
    """The encoder that `model.clip` names, or its `cache`, which must be of the same origin.

    Raises:
      UserError: the cache is stale, or of another kind than the projector reads; nothing is named.
    """
    if not model.clip:
        if cache is None or not cache.origin.imported:
            raise UserError(
                "config.model.clip is not set; give the HF directory of the encoder"
                + (f", {cache.origin.encoder!r}" if cache else ": --config.model.clip=DIR")
            )
        if cache.origin.kind != model.projector:
            raise UserError(
                f"feature cache {cache.directory} holds {cache.shape[0]} x {cache.shape[1]} "
                f"features for config.model.projector={cache.origin.kind!r}, but the configuration "
                f"says {model.projector!r}; set --config.model.projector={cache.origin.kind}"
            )
        base = {"path": str(cache.directory), "fingerprint": cache.fingerprint}
        return Encoder(None, cache.shape, None, base)
    clip_dir = hf_dir.resolve(model.clip)
    vision = read_vision_config(clip_dir)
    preprocessor = Preprocessor.from_hf(clip_dir)
    base = {"path": str(model.clip), "fingerprint": hf_dir.weights_fingerprint(clip_dir)}
    if cache is None:
        return Encoder(vision, None, preprocessor, base)
    cache.check_origin(
        Origin(
            str(model.clip),
            base["fingerprint"],
            model.projector,
            model.vision_layer if model.projector == "patch" else None,
            preprocessor.identity,
        )
    )
    base |= {"features": {"path": str(cache.directory), "fingerprint": cache.fingerprint}}
    return Encoder(None, cache.shape, preprocessor, base)


def read_foundation(model: ModelConfig, features: FeatureCache | None = None) -> Foundation:
    """Reads configs, tokenizer and hashes of `model.clip` and `model.lm`.

    With `features` the captioner has no vision tower: its batches carry features.
    """
    lm_dir = hf_dir.resolve(model.lm)
    encoder = read_encoder(model, features)
    lm = MistralConfig.from_hf(hf_dir.read_config(lm_dir, ["mistral"]))
    tokenizer = load_tokenizer(lm_dir)
    if tokenizer.vocab_size > lm.vocab_size:
        raise UserError(
            f"{model.lm}: its tokenizer has {tokenizer.vocab_size} ids but the model only "
            f"{lm.vocab_size}; the two do not belong together"
        )
    lm = dataclasses.replace(lm, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    prompt = tuple(tokenizer.encode(model.prompt)[:-1]) if model.prompt else ()
    config = CaptionerConfig(
        vision=encoder.vision,
        features=encoder.features,
        lm=lm,
        projector=model.projector,
        prefix_tokens=model.prefix_tokens,
        projector_hidden=model.projector_hidden,
        vision_layer=model.vision_layer,
        prompt=prompt,
        remat=model.remat,
        scan_layers=model.scan_layers,
        fused=model.fused,
        dtype=model.dtype,
    )
    base = {
        "clip": encoder.base,
        "lm": {"path": str(model.lm), "fingerprint": hf_dir.weights_fingerprint(lm_dir)},
        "tokenizer": {"fingerprint": tokenizer.fingerprint},
    }
    return Foundation(config, tokenizer, encoder.preprocessor, base)


def read_run_foundation(config: Config) -> Foundation:
    """What a run's captioner is built upon, its encoder too.

    A run on imported features has none: what it reads is known from their cache only.
    """
    imported = not config.model.clip and config.data.features
    return read_foundation(config.model, FeatureCache(config.data.features) if imported else None)


def load_vision_params(model: ModelConfig, mesh: Mesh, rules: Rules = RULES) -> Params:
    """The frozen tower, straight into its shards: names start with `vision.`."""
    vision = load_vision(model.clip, mesh=mesh, rules=rules, dtype=jnp.dtype(model.frozen_dtype))
    return prefixed(split(vision)[1], "vision")


def load_lm_params(
    model: ModelConfig, mesh: Mesh, rules: Rules = RULES, dtype: str | None = None
) -> Params:
    """The base decoder: names start with `lm.`."""
    lm = load_mistral(
        model.lm,
        mesh=mesh,
        rules=rules,
        dtype=jnp.dtype(dtype or model.param_dtype),
        scan_layers=model.scan_layers,
        fused=model.fused,
    )
    return prefixed(split(lm)[1], "lm")


def new_projector_params(
    foundation: Foundation, model: ModelConfig, seed: int, mesh: Mesh, rules: Rules = RULES
) -> Params:
    """A fresh projector: names start with `projector.`."""
    c = foundation.config

    def build(key: jax.Array) -> Projector:
        return Projector(
            c.projector,
            c.features_shape[1],
            c.lm.hidden_size,
            hidden=c.projector_hidden,
            prefix_tokens=c.prefix_tokens,
            rngs=nnx.Rngs(key),
            dtype=jnp.dtype(model.param_dtype),
        )

    structure = structure_of(lambda: build(jax.random.key(0)))
    make = jax.jit(lambda k: split(build(k))[1], out_shardings=structure.shardings(mesh, rules))
    return prefixed(make(jax.random.key(seed)), "projector")


def new_lora_params(
    foundation: Foundation, model: ModelConfig, seed: int, mesh: Mesh, rules: Rules = RULES
) -> Params:
    """Fresh adapters of the decoder, each born in its shards; none without `model.lora.rank`."""
    shardings = foundation.structure(model).shardings(mesh, rules)
    shardings = {name: s for name, s in shardings.items() if lora.is_factor(name)}

    def make(key: jax.Array) -> Params:  # what is not returned is never computed
        params = split(foundation.build(model, nnx.Rngs(key)))[1]
        return {name: params[name] for name in shardings}

    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed)) if shardings else {}


def restore_trained(
    foundation: Foundation,
    model: ModelConfig,
    run: str | os.PathLike[str],
    step: int,
    mesh: Mesh,
    rules: Rules = RULES,
) -> Params:
    """What a run trained, in the layout of `model`, whatever that of the run is."""

    def learning(model: ModelConfig, scan_layers: bool, fused: bool) -> Params:
        config = dataclasses.replace(foundation.config, scan_layers=scan_layers, fused=fused)
        structure = dataclasses.replace(foundation, config=config).structure(model)
        names = [n for n in structure.names if is_trained(n, model)]
        shapes, shardings = structure.shapes, structure.shardings(mesh, rules)
        return abstract({n: shapes[n] for n in names}, {n: shardings[n] for n in names})

    then = read_run(run)[0].model
    checkpoints = Checkpoints(run, read_only=True)
    saved = checkpoints.restore_params(step, learning(model, then.scan_layers, then.fused))
    checkpoints.close()
    wanted = learning(model, model.scan_layers, model.fused)
    if wanted.keys() == saved.keys():
        return saved
    shardings = {name: x.sharding for name, x in wanted.items()}
    return jax.jit(lambda params: convert(params, wanted), out_shardings=shardings)(saved)


def is_trained(name: str, model: ModelConfig) -> bool:
    """Whether a parameter learns, has optimizer state and goes into checkpoints."""
    if name.startswith("vision."):
        return False
    if name.startswith("lm."):
        return lora.is_factor(name) if model.lora.rank else model.train_lm
    return True


def read_run(run: str | os.PathLike[str]) -> tuple[Config, dict[str, Any]]:
    """`config.json` and `run.json` of a run directory."""
    path = pathlib.Path(run)
    if not path.is_dir():
        raise UserError(
            f"there is no run directory {str(run)!r}; give the --workdir of a run of har_jax.train"
        )
    values = []
    for name in ("config.json", "run.json"):
        try:
            values.append(json.loads((path / name).read_text()))
        except FileNotFoundError:
            raise UserError(
                f"{str(run)!r} is not a run of har_jax.train: it has no {name}; give the --workdir "
                "of one"
            ) from None
        except ValueError as error:
            raise UserError(f"{path / name} is not valid JSON: {error}") from None
    return Config.from_dict(values[0]), values[1]


def check_base(
    info: Mapping[str, Any], foundation: Foundation, run: str | os.PathLike[str]
) -> None:
    """The base weights and tokenizer that a run recorded must be those that are there now."""
    for part, now in foundation.base.items():
        then = info.get("base", {}).get(part, {})
        if then.get("fingerprint") != now["fingerprint"]:
            where = now.get("path", foundation.base["lm"]["path"])
            raise UserError(
                f"{str(run)!r} was trained on another {part} than {where!r} holds now "
                f"(fingerprint {str(then.get('fingerprint'))[:12]} then, {now['fingerprint'][:12]} "
                "now); put the former back"
            )
