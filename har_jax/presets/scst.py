"""Stage 2, self-critical training: data, model, mesh and evaluation are those of the MLE preset of
the same name, for the model must be that of the run in `init_from`."""

from __future__ import annotations

import dataclasses

from har_jax.config import GuardsConfig, OptimConfig
from har_jax.presets import mle, picker

TINY = dataclasses.replace(
    mle.TINY,
    stage="scst",
    init_from="runs/mle",
    steps=280,
    checkpoint_every=140,
    optim=OptimConfig(name="muon", lr=1e-3, warmup_steps=10),
    eval=dataclasses.replace(mle.TINY.eval, every=140),
    # At this size a second copy of the decoder, for the KL, costs nothing.
    guards=GuardsConfig(kl="warn", clip="warn"),
)

COCO = dataclasses.replace(
    mle.COCO,
    stage="scst",
    init_from="runs/mle",
    steps=8_850,  # 5 epochs
    batch_size=64,
    checkpoint_every=885,
    optim=OptimConfig(lr=1e-6, schedule="constant", warmup_steps=200),
    guards=GuardsConfig(
        bad_end="rollback",
        repetition="rollback",
        length="rollback",
        entropy="rollback",
        reward="rollback",
        clip="warn",
    ),
)

SMALL = dataclasses.replace(
    COCO,
    batch_size=32,
    microbatches=4,
    steps=17_700,
    checkpoint_every=1_770,
    data=mle.SMALL.data,
    model=mle.SMALL.model,
    optim=OptimConfig(lr=5e-6, schedule="constant", warmup_steps=200),
    eval=dataclasses.replace(mle.SMALL.eval, every=1_770),
)

CLIPCAP = dataclasses.replace(
    SMALL,
    microbatches=1,
    data=mle.CLIPCAP.data,
    model=mle.CLIPCAP.model,
    eval=dataclasses.replace(mle.CLIPCAP.eval, every=1_770),
    guards=dataclasses.replace(COCO.guards, clip="off"),
)

FINETUNE = dataclasses.replace(
    COCO,
    steps=300,
    batch_size=16,
    checkpoint_every=100,
    data=mle.FINETUNE.data,
    model=mle.FINETUNE.model,
    optim=OptimConfig(lr=1e-5, schedule="constant", warmup_steps=20),
    eval=mle.FINETUNE.eval,
    guards=dataclasses.replace(COCO.guards, clip="off"),
)

get_config = picker("scst", tiny=TINY, coco=COCO, small=SMALL, clipcap=CLIPCAP, finetune=FINETUNE)
