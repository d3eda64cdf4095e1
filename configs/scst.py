"""Stage 2, self-critical training: `--config=configs/scst.py:PRESET` of `python -m har_jax.train`.

Presets as in `configs/mle.py`. The model section must be that of the MLE run in `init_from`.
"""

import importlib.util
import pathlib

from har_jax.config import defaults, pick_preset


def _mle(preset):
    """The MLE preset of the same name: data, model, mesh and evaluation are taken over from it."""
    file = pathlib.Path(__file__).with_name("mle.py")
    spec = importlib.util.spec_from_file_location("har_jax_config_mle", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset)


def _base(preset):
    c, mle = defaults("scst"), _mle(preset)
    for section in ("data", "model", "mesh", "eval"):
        c[section] = mle[section]
    return c


def tiny():
    c = _base("tiny")
    c.init_from = "runs/mle"
    c.steps = 350
    c.batch_size = 32
    c.optim.name = "muon"
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 10
    c.eval.every = 175
    c.checkpoint_every = 175
    c.guards.kl = "warn"  # at this size a second copy of the decoder costs nothing
    c.guards.clip = "warn"
    return c


def coco():
    c = _base("coco")
    c.init_from = "runs/mle"
    c.steps = 8_850  # 5 epochs
    c.batch_size = 64
    c.optim.lr = 1e-6
    c.optim.schedule = "constant"
    c.optim.warmup_steps = 200
    c.eval.every = 885
    c.checkpoint_every = 885
    for guard in ("bad_end", "repetition", "length", "entropy", "reward"):
        c.guards[guard] = "rollback"
    c.guards.clip = "warn"
    return c


def get_config(preset="coco"):
    return pick_preset({"tiny": tiny, "coco": coco}, preset, "configs/scst.py")()
