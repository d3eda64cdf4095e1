"""Stage 1, maximum likelihood."""

from __future__ import annotations

import dataclasses

from har_jax.config import Config, DataConfig, EvalConfig, LoraConfig, ModelConfig, OptimConfig
from har_jax.presets import picker

TINY = Config(
    stage="mle",
    steps=320,
    batch_size=32,
    checkpoint_every=160,
    data=DataConfig(dir="data/scenes", max_tokens=0),
    model=ModelConfig(encoder="models/scenes/clip-l", lm="models/scenes/mistral"),
    # Muon needs a third of AdamW's steps, at this size.
    optim=OptimConfig(name="muon", lr=5e-3, warmup_steps=25),
    eval=EvalConfig(every=160, images=256, clip_score="models/scenes/clip-b"),
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

# One GPU of 16 to 24 GB. `--config.model.lm=models/Qwen2.5-0.5B` is the other decoder of its size.
SMALL = dataclasses.replace(
    COCO,
    steps=8_850,  # 5 epochs
    batch_size=64,
    microbatches=4,
    checkpoint_every=1_770,
    model=dataclasses.replace(
        COCO.model,
        encoder="models/siglip2-base-patch16-224",
        lm="models/SmolLM2-360M",
    ),
    optim=OptimConfig(lr=1e-4, projector_lr_factor=10.0, warmup_steps=400, weight_decay=0.01),
    eval=dataclasses.replace(COCO.eval, every=1_770),
)

# ClipCap's MLP variant (Mokady et al. 2021, arXiv:2111.09734): ten prefix tokens of one vector.
CLIPCAP = dataclasses.replace(
    COCO,
    steps=14_160,  # 5 epochs
    batch_size=40,
    checkpoint_every=2_832,
    data=dataclasses.replace(COCO.data, captions_per_image=5),
    model=ModelConfig(
        encoder="models/clip-vit-base-patch32",
        lm="models/gpt2",
        projector="pooled",
        prefix_tokens=10,
        projector_hidden=3840,  # half of what it says, as theirs
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        scan_layers=True,
    ),
    # Theirs is 2e-5 for batches of 40 captions; ours hold five for each of 40 images.
    optim=OptimConfig(lr=5e-5, projector_lr_factor=4.0, warmup_steps=1000, schedule="linear"),
    eval=dataclasses.replace(COCO.eval, every=2_832, clip_score=""),  # ViT-B/32 is its own eye
)

# Another's captioner on one's own photographs (docs/finetuning.md): encoder, decoder, prompt and
# projector are those of `init_from`, and adapters learn beside the projector.
FINETUNE = dataclasses.replace(
    COCO,
    init_from="models/captioner",
    steps=500,
    batch_size=16,
    checkpoint_every=100,
    data=DataConfig(dir="data/mine", max_tokens=0),
    model=dataclasses.replace(COCO.model, encoder="", lm="", lora=LoraConfig(rank=16)),
    optim=OptimConfig(lr=1e-4, warmup_steps=20),
    eval=EvalConfig(every=100),
)

get_config = picker("mle", tiny=TINY, coco=COCO, small=SMALL, clipcap=CLIPCAP, finetune=FINETUNE)
