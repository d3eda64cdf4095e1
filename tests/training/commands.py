"""Arguments of `har_jax.train` on the small workspace of the tests."""


def train_arguments(workspace, run, stage="mle", **overrides):
    """Settings by key, with `__` for a dot: `optim__lr=1e-3`."""
    settings = {
        "data.dir": workspace / "data",
        "model.encoder": workspace / "models/clip-l",
        "model.lm": workspace / "models/mistral",
        "eval.clip_score": "",
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "checkpoint_every": 1000,
        "eval.every": 0,
        "eval.images": 8,
        "eval.batch_size": 8,
        "data.max_tokens": 12,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 0,
        "scst.doctor": "off",  # random models would not pass it
        "guards.kl": "off",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return [
        f"--config=configs/{stage}.py:tiny",
        f"--workdir={run}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
