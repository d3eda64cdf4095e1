"""Writing captions: one loop for greedy and sampled rows, and beam search."""

from har_jax.decoding.loop import Captions, Rollout, decode
from har_jax.decoding.plan import DecodePlan

__all__ = ["Captions", "DecodePlan", "Rollout", "decode"]
