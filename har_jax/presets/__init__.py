"""Configurations that come with the package: `--config=scst:tiny`.

tiny    the embedded scenes, minutes on a laptop
coco    ViT-L/14 and Mistral-7B. All weights fit v5e:4x4 (fsdp 16) and v5p:4x4x4 (fsdp 16,
        tensor 4), LoRA fits v5e:4x4 (fsdp 4, tensor 4): docs/recipes.md
small   SigLIP 2 base and SmolLM2-360M (or Qwen2.5-0.5B), for one GPU of 16 to 24 GB
clipcap ViT-B/32's one vector, ten prefix tokens and GPT-2, as ClipCap: for one GPU of 16 GB
"""

from __future__ import annotations

from collections.abc import Callable

from har_jax.config import Config
from har_jax.errors import UserError, did_you_mean

FAMILIES = ("mle", "scst")


def picker(family: str, **presets: Config) -> Callable[..., Config]:
    """A family's `get_config(preset="coco")`, which raises a `UserError` of an unknown name."""

    def get_config(preset: str = "coco") -> Config:
        if preset in presets:
            return presets[preset]
        near = did_you_mean(preset, presets)
        raise UserError(f"{preset!r} is no such preset{near}; {family} has {', '.join(presets)}")

    return get_config
