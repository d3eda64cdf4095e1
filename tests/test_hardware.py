"""Memory that commands keep from step to step on a CPU: page faults, as the system counts them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = """
import resource, sys
from har_jax.hardware import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(x):
    wide = jnp.outer(x, jnp.arange(16.0)) @ jnp.ones((16, 16))
    return jnp.sum(jnp.sin(wide) @ jnp.ones((16, 16)), axis=1)

x = jnp.arange(1e6)
for i in range(6):
    if i == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **variables: str) -> int:
    """Of three steps with temporaries of 64 MB and more, after three to get warm."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    given |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables
    run = [sys.executable, "-c", STEPS, how]
    return int(subprocess.run(run, env=given, check=True, capture_output=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_is_kept_from_step_to_step():
    left, kept = faults("leave"), faults("keep")
    if left < 3 * 64e6 / os.sysconf("SC_PAGESIZE"):  # as with JAX 0.12
        pytest.skip(f"these steps give nothing back: {left} page faults, {kept} where it is kept")
    assert kept < left / 10
    # Whoever has set the allocator's variables knows better.
    assert faults("keep", MALLOC_ARENA_TEST="8") > left / 2
