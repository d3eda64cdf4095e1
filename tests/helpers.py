"""Small models for tests: a few thousand parameters, compiled in a second or two."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import pytest
from flax import nnx

from har_jax.interchange.families.registry import DECODERS
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.decoders import MistralConfig
from har_jax.models.encoders.clip import VisionConfig
from har_jax.models.functional import split, structure_of
from har_jax.sharding import RULES

M = TypeVar("M", bound=nnx.Module)

VISION = VisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)
LM = MistralConfig(
    vocab_size=14,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    sliding_window=None,
)

_KEYS = {name: getattr(LM, name) for name in (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "sliding_window",
)}  # fmt: skip
_GPT2 = {"n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
# What a family's files say beside its sizes, for each of its options to be at work.
_OWN = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gpt2": {"vocab_size": LM.vocab_size, **_GPT2},
}


def small_lm(family: str, **changes: Any) -> Any:
    """A decoder's configuration as large as `LM`, of any family; `changes` are Hugging Face's."""
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    sizes = {} if family == "gpt2" else _KEYS
    values = {"model_type": family, **ends, **sizes, **_OWN.get(family, {}), **changes}
    return DECODERS[family].read(values, family)


OTHER_FAMILIES = [family for family in DECODERS if family != "mistral"]


def long(cases: Iterable[Any]) -> list[Any]:
    """Further cases of a parametrised test, for `make long`."""
    return [pytest.param(case, marks=pytest.mark.long) for case in cases]


def drawn(few: Iterable[int], n: int) -> list[Any]:
    """Seeds of drawn cases: a few that between them draw every option; the others up to `n` for
    `make long`."""
    few = tuple(few)
    return [*few, *long(seed for seed in range(n) if seed not in few)]


def small_config(vocab_size: int = 14, **changes) -> CaptionerConfig:
    lm = dataclasses.replace(LM, vocab_size=vocab_size)
    return dataclasses.replace(CaptionerConfig(vision=VISION, lm=lm), **changes)


def small_captioner(seed: int = 0, scale: float = 8.0, **changes) -> Captioner:
    """Random, with weights scaled up so that its policy is far from uniform."""
    captioner = Captioner(small_config(**changes), rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(captioner)
    state = jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, state)
    return nnx.merge(graphdef, state)


def initialise(build, seed, mesh=None, rules=RULES):
    """A module's structure and random parameters, each born in its shards."""
    structure = structure_of(lambda: build(jax.random.key(0)))
    out = None if mesh is None else structure.shardings(mesh, rules)
    make = jax.jit(lambda key: split(build(key))[1], out_shardings=out)
    return structure, make(jax.random.key(seed))


def jitted(module: M, function: Callable[[M], Any]) -> Any:
    """`function(module)`, compiled as one program: operation by operation takes far longer."""
    structure, params = split(module)
    return jax.jit(lambda params: function(structure.merge(params)))(params)


def images(b: int, seed: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (b, 16, 16, 3))
