"""Stage 1, maximum likelihood."""

from __future__ import annotations

from har_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig
from har_jax.presets import picker

TINY = Config(
    stage="mle",
    steps=400,
    batch_size=32,
    checkpoint_every=200,
    data=DataConfig(dir="data/scenes", max_tokens=0),
    model=ModelConfig(encoder="models/scenes/clip-l", lm="models/scenes/mistral"),
    # Muon needs a third of AdamW's steps, at this size.
    optim=OptimConfig(name="muon", lr=5e-3, warmup_steps=25),
    eval=EvalConfig(every=200, images=256, clip_score="models/scenes/clip-b"),
)

COCO = Config(
    stage="mle",
    steps=4_425,  # 5 epochs of the 113,287 training images
    batch_size=128,
    checkpoint_every=885,
    data=DataConfig(dir="data/coco", max_tokens=40),
    model=ModelConfig(
        encoder="models/clip-vit-large-patch14",
        lm="models/Mistral-7B-v0.1",
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        remat="dots",
        scan_layers=True,  # one block is compiled, not 32
    ),
    optim=OptimConfig(lr=2e-5, projector_lr_factor=50.0, warmup_steps=200),
    eval=EvalConfig(every=885, clip_score="models/clip-vit-base-patch32"),
)

get_config = picker("mle", tiny=TINY, coco=COCO)
