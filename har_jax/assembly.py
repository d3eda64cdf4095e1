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

from har_jax.config import Config, ModelConfig
from har_jax.data.images import Preprocessor
from har_jax.errors import UserError
from har_jax.interchange import hf_dir
from har_jax.interchange.clip import load_vision, read_vision_config
from har_jax.interchange.mistral import load_mistral
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.functional import Params, Structure, prefixed, split, structure_of
from har_jax.models.mistral import MistralConfig
from har_jax.models.projector import Projector
from har_jax.sharding import RULES, Rules
from har_jax.text.tokenizer import CaptionTokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Foundation:
    """What a captioner is built upon, read without touching a device."""

    config: CaptionerConfig
    tokenizer: CaptionTokenizer
    preprocessor: Preprocessor
    base: Mapping[str, Any]  # where the weights came from: {"clip": {path, fingerprint}, "lm": …}

    def structure(self, model: ModelConfig) -> Structure[Captioner]:
        dtypes = dict(
            dtype=jnp.dtype(model.param_dtype), vision_dtype=jnp.dtype(model.frozen_dtype)
        )
        return structure_of(lambda: Captioner(self.config, rngs=nnx.Rngs(0), **dtypes))


def read_foundation(model: ModelConfig) -> Foundation:
    """Reads configs, tokenizer and hashes of `model.clip` and `model.lm`."""
    clip_dir, lm_dir = hf_dir.resolve(model.clip), hf_dir.resolve(model.lm)
    vision = read_vision_config(clip_dir)
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
        vision=vision,
        lm=lm,
        projector=model.projector,
        prefix_tokens=model.prefix_tokens,
        projector_hidden=model.projector_hidden,
        vision_layer=model.vision_layer,
        prompt=prompt,
        remat=model.remat,
        dtype=model.dtype,
    )
    base = {
        "clip": {"path": str(model.clip), "fingerprint": hf_dir.weights_fingerprint(clip_dir)},
        "lm": {"path": str(model.lm), "fingerprint": hf_dir.weights_fingerprint(lm_dir)},
        "tokenizer": {"fingerprint": tokenizer.fingerprint},
    }
    return Foundation(config, tokenizer, Preprocessor.from_hf(clip_dir), base)


def load_vision_params(model: ModelConfig, mesh: Mesh, rules: Rules = RULES) -> Params:
    """The frozen tower, straight into its shards: names start with `vision.`."""
    vision = load_vision(model.clip, mesh=mesh, rules=rules, dtype=jnp.dtype(model.frozen_dtype))
    return prefixed(split(vision)[1], "vision")


def load_lm_params(
    model: ModelConfig, mesh: Mesh, rules: Rules = RULES, dtype: str | None = None
) -> Params:
    """The base decoder: names start with `lm.`."""
    lm = load_mistral(model.lm, mesh=mesh, rules=rules, dtype=jnp.dtype(dtype or model.param_dtype))
    return prefixed(split(lm)[1], "lm")


def new_projector_params(
    foundation: Foundation, model: ModelConfig, seed: int, mesh: Mesh, rules: Rules = RULES
) -> Params:
    """A fresh projector: names start with `projector.`."""
    c = foundation.config

    def build(key: jax.Array) -> Projector:
        return Projector(
            c.projector,
            c.vision.hidden_size,
            c.lm.hidden_size,
            hidden=c.projector_hidden,
            prefix_tokens=c.prefix_tokens,
            rngs=nnx.Rngs(key),
            dtype=jnp.dtype(model.param_dtype),
        )

    structure = structure_of(lambda: build(jax.random.key(0)))
    make = jax.jit(lambda k: split(build(k))[1], out_shardings=structure.shardings(mesh, rules))
    return prefixed(make(jax.random.key(seed)), "projector")


def is_trained(name: str, model: ModelConfig) -> bool:
    """Whether a parameter learns, has optimizer state and goes into checkpoints."""
    if name.startswith("vision."):
        return False
    return model.train_lm or not name.startswith("lm.")


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
