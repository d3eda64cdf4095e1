"""What families of decoders have in common: the keys of a `config.json`, and where weights lie.

A family is a call of `causal_lm`: the values that a missing key has, and what of the transformer's
options its keys mean.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from har_jax.errors import UserError
from har_jax.foreign import Keys, listed, shortened
from har_jax.interchange.families.family import Family
from har_jax.interchange.families.keys import FIXED, HARMLESS, WHY
from har_jax.interchange.table import Places, Row, Table, linear, norm
from har_jax.models.decoders.options import Factor, Options, RopeScaling
from har_jax.models.decoders.transformer import TransformerConfig
from har_jax.models.sizes import Base, Rows, Width

Found = dict[str, Any]
"""The keys of a `config.json` that are read, defaults filled in."""

_TYPES = typing.get_type_hints(Options, include_extras=True)
_Number = Annotated[int, Meta(ge=0, le=300)] | None  # of a layer
_Width = Width | None
_Rows = Rows | None
SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "rope_theta"),
)
"""Keys that are called alike here and there."""

USED = {
    **{name: _TYPES[name] for name in ("model_type", *SAME)},
    "head_dim": _Width,
    "num_key_value_heads": _Width,
    "rope_scaling": dict[str, Any] | None,
    "rope_parameters": dict[str, Any] | None,
}
LAYER_TYPES = {
    "sliding_window": _Rows,
    "use_sliding_window": bool | None,
    "max_window_layers": _Number,
    "layer_types": list[str] | None,
}
"""Keys of families some of whose layers have a window."""

_KINDS = ("default", "linear", "llama3")
_NEEDED = {
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}
"""The numbers that scaled positions are made of."""

ROPE = Keys(
    used={
        "rope_theta": Base,
        **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), Factor | None),
        "original_max_position_embeddings": Rows | None,
    },
    fixed={"rope_type": _KINDS, "type": _KINDS, "partial_rotary_factor": (1, 1.0)},
)


def _rope(found: Found, where: str) -> dict[str, Any]:
    """Takes what is said of positions out of `found`; the options that it means."""
    said: Found = {}
    for key in ("rope_parameters", "rope_scaling"):  # the second is the older name, and wins
        values = found.pop(key, None) or {}
        read = ROPE.read(values, f"{where}: {key}")
        if values:
            kept = {"rope_theta": said["rope_theta"]} if "rope_theta" in said else {}
            said = kept | read | {"rope_type": values.get("rope_type") or values.get("type")}
    theta = {"rope_theta": said.pop("rope_theta")} if "rope_theta" in said else {}
    said = {key: value for key, value in said.items() if value is not None}
    kind = said.get("rope_type") or "default"  # what says nothing is no kind: null, "", []
    if kind == "default":
        return {**theta, "rope_scaling": None}
    if lacking := [key for key in _NEEDED[kind] if key not in said]:
        raise UserError(
            f"{where}: rotary positions of type {kind!r} lack {' and '.join(lacking)}; give the "
            "config.json as it was saved or downloaded"
        )
    kept = {key: said[key] for key in _NEEDED[kind]}
    return {**theta, "rope_scaling": RopeScaling(rope_type=kind, **kept)}


def causal_lm(
    model_type: str,
    architecture: str,
    *,
    defaults: Mapping[str, Any],
    options: Callable[[Found, str], dict[str, Any]] = lambda found, where: {},
    spelt: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {},
    used: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Sequence[Any]] | None = None,
) -> Family[TransformerConfig]:
    """A family whose files are laid out as Llama's.

    Args:
      architecture: transformers' name of the class.
      defaults: what a `config.json` means that lacks a key.
      options: from the keys that `used` adds (and where they stand, for errors) to options of the
        transformer.
      spelt: these options as keys of a `config.json`.
      fixed: keys that have but one value here, besides those of `keys.FIXED`.
    """
    ours = set(used or {})
    keys = Keys(
        used={**USED, **(used or {})},
        fixed={key: v for key, v in {**FIXED, **(fixed or {})}.items() if key not in ours},
        harmless=HARMLESS - ours,
        why=WHY,
    )

    def read(config: Mapping[str, Any], where: str = f"{model_type} config") -> TransformerConfig:
        if config.get("model_type") != model_type:
            raise UserError(
                f"{where} is of type {shortened(repr(config.get('model_type')))} where a "
                f"{model_type!r} one is needed"
            )
        found: Found = {**defaults, **keys.read(config, where)}
        positions = _rope(found, where)
        heads = found["num_attention_heads"]
        if found.get("head_dim") is None:
            found["head_dim"] = max(found["hidden_size"] // heads, 1)
        if found.get("num_key_value_heads") is None:
            found["num_key_value_heads"] = heads
        same = {name: found[name] for name in SAME if name in found}
        more = options({**dict.fromkeys(used or {}), **found}, where)
        return TransformerConfig(model_type=model_type, **{**same, **positions, **more})

    def write(config: TransformerConfig) -> dict[str, Any]:
        values = {name: getattr(config, name) for name in SAME}
        scaling = config.rope_scaling
        kind = "default" if scaling is None else scaling.rope_type
        rope = {"rope_type": kind} | {k: getattr(scaling, k) for k in _NEEDED.get(kind, ())}
        return {
            "architectures": [architecture],
            "model_type": model_type,
            **values,
            **({} if scaling is None else {"rope_scaling": rope}),  # as transformers 4 reads it
            "rope_parameters": {**rope, "rope_theta": config.rope_theta},
            **spelt(config),
        }

    return family(model_type, read, write, TABLE, {"model.": ("",)}, BUFFERS)


def family(
    model_type: str,
    read: Callable[..., TransformerConfig],
    write: Callable[[TransformerConfig], dict[str, Any]],
    table: Table,
    places: Places,
    buffers: str,
) -> Family[TransformerConfig]:
    """The row of a decoder; `buffers` is a regex of tensors in files that are no weights."""
    return Family(
        (model_type,),
        read,
        write,
        lambda config, **options: config.build(**options),
        list(table),
        # Embeddings are repeated as an output layer in some files.
        lambda config: buffers + (r"|lm_head\.weight" * config.tie_word_embeddings),
        places,
    )


BUFFERS = r".*rotary_emb\.inv_freq"
"""Which old files carry."""


def _table() -> list[Row]:
    hf, path = "model.layers.{}", "layers.{}"
    attn, mlp = f"{hf}.self_attn", f"{hf}.mlp"
    heads = {"axes": "(n h) d -> d n h", "bias": "(n h) -> n h"}
    return [
        Row("model.embed_tokens.weight", "embed_tokens.embedding", "v d -> v d"),
        *norm(f"{hf}.input_layernorm", f"{path}.attn_norm"),
        *linear(f"{attn}.q_proj", f"{path}.attn.q", **heads),
        *linear(f"{attn}.k_proj", f"{path}.attn.k", **heads),
        *linear(f"{attn}.v_proj", f"{path}.attn.v", **heads),
        *norm(f"{attn}.q_norm", f"{path}.attn.q_norm"),
        *norm(f"{attn}.k_norm", f"{path}.attn.k_norm"),
        *linear(f"{attn}.o_proj", f"{path}.attn.o", axes="d (n h) -> n h d", bias="d -> d"),
        *norm(f"{hf}.post_attention_layernorm", f"{path}.mlp_norm"),
        *linear(f"{mlp}.gate_proj", f"{path}.mlp.gate", bias="f -> f"),
        *linear(f"{mlp}.up_proj", f"{path}.mlp.up", bias="f -> f"),
        *linear(f"{mlp}.down_proj", f"{path}.mlp.down", bias="d -> d"),
        *norm("model.norm", "norm"),
        *linear("lm_head", "lm_head"),
    ]


TABLE = _table()
"""Of all that Llama's relatives have; each reads the rows that its options ask for."""


def sliding(found: Found, where: str) -> dict[str, Any]:
    """The options that `LAYER_TYPES` mean, where `use_sliding_window` turns windows on (Qwen's).

    Raises:
      UserError: a kind of layer that there is not, or another number of them.
    """
    window = found["sliding_window"] if found["use_sliding_window"] else None
    if (types := found["layer_types"]) is None:
        first, n = found["max_window_layers"] or 0, found["num_hidden_layers"]
        types = ["full_attention" if i < first else "sliding_attention" for i in range(n)]
        types = types if window else ["full_attention"] * n
    if len(types) != found["num_hidden_layers"]:
        raise UserError(
            f"{where}: layer_types has {len(types)} entries for {found['num_hidden_layers']} "
            "layers; give the config.json as it was saved or downloaded"
        )
    known = {"full_attention": False, "sliding_attention": True}
    if odd := sorted(set(types) - set(known)):
        raise UserError(
            f"{where}: layer_types has {listed(odd)}; only {' and '.join(known)} are supported"
        )
    slides = tuple(known[kind] for kind in types)
    if window is None and any(slides):
        raise UserError(
            f"{where}: layer_types has sliding_attention, but no window (sliding_window and "
            "use_sliding_window); give the config.json as it was saved or downloaded"
        )
    if not any(slides):
        return {"sliding_window": None}
    return {"sliding_window": window, "sliding_layers": None if all(slides) else slides}


def spelt_sliding(config: TransformerConfig) -> dict[str, Any]:
    """The way back from `sliding`."""
    n = config.num_hidden_layers
    slides = (kind.window is not None for kind in config.kinds)
    return {
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window is not None,
        "max_window_layers": n,
        "layer_types": ["sliding_attention" if here else "full_attention" for here in slides],
    }
