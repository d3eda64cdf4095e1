"""Names of array types and axes used throughout the package.

Axes, as they stand in annotations and in suffixes such as `tokens_brt`:

    B  images of a batch                R  captions of one image (references, rollouts or beams)
    T  tokens of a caption              P  visual prefix tokens
    S  tokens of the vision tower       D  width of the decoder
    V  vocabulary                       N, K, H  query heads, key/value heads, width of a head
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike  # noqa: F401
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt  # noqa: F401

AnyArray = jax.Array | np.ndarray  # where NumPy's arrays are as welcome as JAX's
PyTree = Any
