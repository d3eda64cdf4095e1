"""What the miniature foundation models are made of: sizes, schedules, how many more scenes."""

from __future__ import annotations

import dataclasses
from typing import Any

from har_jax.metrics.embedding_scores import PROMPT
from har_jax.miniature.pretrain import Schedule

IMAGE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ClipRecipe:
    """One CLIP. Sizes of the towers go to `VisionConfig` and `TextConfig`."""

    vision: dict[str, Any]
    text: dict[str, Any]
    projection_dim: int
    schedule: Schedule
    looking: Schedule  # of the patches alone, on scenes, before that
    prompt: str = ""  # half of the texts are given it


@dataclasses.dataclass(frozen=True)
class LmRecipe:
    model: dict[str, Any]
    schedule: Schedule
    vocab_size: int  # at most
    max_epochs: int = 20  # of a small dataset


def _tower(width: int, layers: int, heads: int, act: str, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": act,
        **more,
    }


CLIP_L = ClipRecipe(
    vision=_tower(128, 4, 4, "quick_gelu", image_size=IMAGE_SIZE, patch_size=16),
    text=_tower(64, 2, 4, "quick_gelu"),
    projection_dim=64,
    schedule=Schedule(steps=100, batch_size=256),
    looking=Schedule(steps=350, batch_size=128),
)
CLIP_B = ClipRecipe(
    vision=_tower(96, 3, 6, "gelu", image_size=IMAGE_SIZE, patch_size=16),
    text=_tower(80, 2, 5, "gelu"),
    projection_dim=48,
    schedule=Schedule(steps=100, batch_size=128),
    looking=Schedule(steps=120, batch_size=128),
    prompt=PROMPT,  # as in CLIPScore
)
MISTRAL = LmRecipe(
    model={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "sliding_window": None,
    },
    schedule=Schedule(steps=120, batch_size=128),
    vocab_size=2000,
)
GPT2 = LmRecipe(
    model={"n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 192, "n_positions": 128},
    schedule=Schedule(steps=120, batch_size=64, lr=0.01),  # the embeddings are tied
    vocab_size=800,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All four.

    Attributes:
      scenes: pictures drawn beyond a dataset of scenes, for the CLIPs; of other datasets there are
        no more.
      max_images: bounds memory and time; of a large dataset the first are taken.
      max_text_tokens: of a caption in training; the text towers read 77 as OpenAI's do.
    """

    clip_l: ClipRecipe = CLIP_L
    clip_b: ClipRecipe = CLIP_B
    mistral: LmRecipe = MISTRAL
    gpt2: LmRecipe = GPT2
    scenes: int = 12_000
    clip_vocab_size: int = 1000
    max_images: int = 8000
    max_text_tokens: int = 40

    def within(self, steps: int) -> Recipe:
        """The same with at most so many steps of each training."""
        changed: dict[str, Any] = {}
        for part in ("clip_l", "clip_b", "mistral", "gpt2"):
            own = getattr(self, part)
            short = {
                name: dataclasses.replace(value, steps=min(steps, value.steps))
                for name, value in vars(own).items()
                if isinstance(value, Schedule)
            }
            changed[part] = dataclasses.replace(own, **short)
        return dataclasses.replace(self, **changed)
