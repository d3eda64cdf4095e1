"""Stage 1, maximum likelihood: `--config=configs/mle.py:PRESET` of `python -m har_jax.train`.

Presets: `tiny` (the embedded scenes, minutes on a laptop), `coco` (ViT-L/14 and Mistral-7B),
`small` (SigLIP 2 base and SmolLM2-360M), `clipcap` (ViT-B/32 and GPT-2), `finetune` (a captioner of
anybody's, docs/finetuning.md); they stand in har_jax/presets/mle.py.
Copy this file and change what you like: the line below shows how. Every key can be overridden on
the command line too: `--config.optim.lr=3e-4`.
"""

from har_jax.presets import mle


def get_config(preset="coco"):
    config = mle.get_config(preset)
    # return config.changed(batch_size=64, **{"optim.lr": 1e-4, "model.lora.rank": 16})
    return config
