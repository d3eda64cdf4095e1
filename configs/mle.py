"""Stage 1, maximum likelihood: `--config=configs/mle.py:PRESET` of `python -m har_jax.train`.

Presets: `tiny` (the embedded scenes, minutes on a laptop), `coco` (ViT-L/14 and Mistral-7B).
Every key can be overridden: `--config.optim.lr=3e-4`.
"""

from har_jax.config import defaults, pick_preset


def tiny():
    c = defaults("mle")
    c.data.dir = "data/scenes"
    c.data.max_tokens = 0
    c.model.clip = "models/scenes/clip-l"
    c.model.lm = "models/scenes/mistral"
    c.eval.clip_score = "models/scenes/clip-b"
    c.steps = 500
    c.batch_size = 32
    c.optim.name = "muon"  # a third of AdamW's steps, at this size
    c.optim.lr = 5e-3
    c.optim.warmup_steps = 25
    c.eval.every = 250
    c.eval.images = 256
    c.checkpoint_every = 250
    return c


def coco():
    c = defaults("mle")
    c.data.dir = "data/coco"
    c.data.max_tokens = 40
    c.model.clip = "models/clip-vit-large-patch14"
    c.model.lm = "models/Mistral-7B-v0.1"
    c.model.dtype = "bfloat16"
    c.model.frozen_dtype = "bfloat16"
    c.model.remat = "dots"
    c.eval.clip_score = "models/clip-vit-base-patch32"
    c.steps = 4_425  # 5 epochs of the 113,287 training images
    c.batch_size = 128
    c.optim.lr = 2e-5
    c.optim.projector_lr_factor = 50.0
    c.optim.warmup_steps = 200
    c.eval.every = 885
    c.checkpoint_every = 885
    return c


def get_config(preset="coco"):
    return pick_preset({"tiny": tiny, "coco": coco}, preset, "configs/mle.py")()
