"""HAR in JAX: captioners trained by maximum likelihood, refined by self-critical training."""

from har_jax.version import __version__

__all__ = ["__version__"]
