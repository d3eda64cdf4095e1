"""HAR in JAX: captioners trained by maximum likelihood, refined by self-critical training.

captioner = har_jax.load_captioner("runs/scst", mesh=mesh)   # parameters arrive sharded
texts = captioner.generate(images, method="beam")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from har_jax.version import __version__

if TYPE_CHECKING:
    from har_jax.loading.captioner import load_captioner
    from har_jax.loading.loaded import LoadedCaptioner
    from har_jax.models.captioner import Captioner, CaptionerConfig

__all__ = ["Captioner", "CaptionerConfig", "LoadedCaptioner", "__version__", "load_captioner"]

_HOMES = {
    "Captioner": "har_jax.models.captioner",
    "CaptionerConfig": "har_jax.models.captioner",
    "LoadedCaptioner": "har_jax.loading.loaded",
    "load_captioner": "har_jax.loading.captioner",
}


def __getattr__(name: str) -> Any:
    """Imported on first use, so that `har_jax.metrics` and `--help` cost no start of JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module 'har_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
