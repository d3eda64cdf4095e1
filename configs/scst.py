"""Stage 2, self-critical training: `--config=configs/scst.py:PRESET` of `python -m har_jax.train`.

Presets as in `configs/mle.py`, from har_jax/presets/scst.py. The model section must be that of the
MLE run in `init_from`: where you change it there, change it here.
"""

from har_jax.presets import scst


def get_config(preset="coco"):
    config = scst.get_config(preset)
    # return config.changed(**{"scst.reward": "cider_d + 0.5*bleu", "model.lora.rank": 16})
    return config
