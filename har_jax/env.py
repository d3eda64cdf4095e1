"""What a report of a fault should say of the machine: `python -m har_jax.env`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from har_jax.command_line import new_parser
from har_jax.errors import command, one_line
from har_jax.hardware import GIB, device_memory
from har_jax.version import __version__

DESCRIPTION = """\
Prints the versions of this package and of what it needs, the devices that JAX sees, and the
variables of the environment that change how they compute: paste it into a report of a fault. It
starts JAX, so give it the environment that the fault was seen in.
"""

_VARIABLES = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_", "NCCL_", "HAR_", "HF_HOME", "HF_HUB_")
_VARIABLES += ("TF_", "OMP_", "NPROC", "LD_LIBRARY_PATH")
_SECRET = re.compile("token|secret|password|key|credential", re.I)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("env", DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    found = {**_software(), **_machine(), "environment": _environment(os.environ)}
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, value in found.items():
        if not isinstance(value, Mapping):
            print(f"{name}: {value}")
            continue
        width = max(map(len, value), default=0)
        print(f"{name}:", *(f"  {key:{width}}  {text}" for key, text in value.items()), sep="\n")
    return 0


def _software() -> dict[str, Any]:
    """Of this package, and of whatever it may import that is installed."""
    try:
        required = importlib.metadata.requires("har_jax") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path
        required = []
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0]: None for line in required}
    names |= dict.fromkeys(("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"))
    versions = {}
    for name in sorted(names, key=str.lower):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "har_jax": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": versions,
    }


def _machine() -> dict[str, Any]:
    system = {
        "system": platform.platform(),
        "cores": str(os.cpu_count()),
        "java (METEOR, SPICE)": shutil.which("java") or "none",
    }
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        system["memory"] = f"{size / GIB:.1f} GiB"
    return {"machine": system, "devices": _devices()}


def _devices() -> dict[str, str]:
    """What JAX sees; why it sees nothing, where it does not."""
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # whatever a driver says belongs into the report
        return {"none": one_line(f"{type(error).__name__}: {error}")}
    memory = device_memory(devices[0])
    each = f", {memory / GIB:.1f} GiB each" if memory else ""
    version = getattr(devices[0].client, "platform_version", "").split("\n")[0]
    return {
        "backend": one_line(f"{devices[0].platform} {version}".strip()),
        "count": f"{len(devices)} x {devices[0].device_kind}{each}",
        "processes": str(jax.process_count()),
    }


def _environment(values: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter; those that may hold a secret only say that they are there."""
    return {
        name: "(set)" if _SECRET.search(name) else one_line(values[name])
        for name in sorted(values)
        if name.startswith(_VARIABLES)
    }


if __name__ == "__main__":
    raise SystemExit(main())
