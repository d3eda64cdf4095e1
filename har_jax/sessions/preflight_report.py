"""What preflight found, as text and as JSON."""

from __future__ import annotations

from typing import Any

from har_jax.hardware import GIB, chip_of
from har_jax.sessions.budget import floors
from har_jax.sessions.preflight import Program, Verdict, settings_text

Found = tuple[dict[str, Any], Verdict] | None


def as_json(verdict: Verdict, found: Found) -> dict[str, Any]:
    """Sizes in GiB on each device, times in seconds."""
    made = _one(verdict)
    if not verdict.fits:
        made["would_fit"] = None if found is None else {"settings": found[0], **_one(found[1])}
    return made


def _one(verdict: Verdict) -> dict[str, Any]:
    chip = chip_of(verdict.mesh.devices.flat[0])
    phases = floors(verdict.blueprint, verdict.config, verdict.mesh)
    sizes = {**verdict.budget.kept, **verdict.budget.made}
    return {
        "fits": verdict.fits,
        "devices": f"{verdict.mesh.size} x {verdict.mesh.devices.flat[0].device_kind}",
        "mesh": dict(verdict.mesh.shape),
        "decode_weights": verdict.blueprint.placed_on(verdict.mesh).model.decode_weights,
        "holds": {name: round(size / GIB, 4) for name, size in sizes.items()},
        "programs": {program.name: _program(program) for program in verdict.programs},
        "floor": None
        if chip is None
        else {
            name: {"seconds": phase.seconds(chip), "bound": phase.bound(chip)}
            for name, phase in phases.items()
        },
    }


def _program(program: Program) -> dict[str, Any]:
    return {
        "fits": program.fits,
        "peak": round(program.peak / GIB, 4),
        "limit": None if program.limit is None else round(program.limit / GIB, 4),
        "shortfall": round(program.shortfall / GIB, 4),
        "arguments": round(program.arguments / GIB, 4),
        "compile_seconds": round(program.seconds, 1),
        "collectives": [
            {"kind": c.kind, "result": c.result, "bytes": c.bytes, "count": c.count, "loop": c.loop}
            for c in program.collectives
        ],
    }


def as_text(verdict: Verdict, found: Found) -> str:
    """For people."""
    lines = _text(verdict)
    if verdict.fits:
        return "\n".join(lines)
    if found is None:
        lines.append("no settings were found that fit; more time to look: --search=SECONDS")
    else:
        lines += ["", f"this fits: {settings_text(found[0])}", *_text(found[1])]
    return "\n".join(lines)


def _text(verdict: Verdict) -> list[str]:
    made, device = _one(verdict), verdict.mesh.devices.flat[0]
    mesh = " x ".join(f"{axis} {n}" for axis, n in made["mesh"].items())
    lines = [f"{made['devices']}, mesh {mesh}, decoder for rollouts {made['decode_weights']}"]
    lines.append("on each device, GiB")
    for name, size in made["holds"].items():
        lines.append(f"  {name:<24}{size:8.2f}")
    for program in verdict.programs:
        limit = "" if program.limit is None else f" of {program.limit / GIB:.2f}"
        word = "fits" if program.fits else f"does not fit, {program.shortfall / GIB:.2f} GiB short"
        text = f"{program.name}: {word}; peak {program.peak / GIB:.2f}{limit} GiB"
        lines.append(f"{text} (compiled in {program.seconds:.0f} s)")
        lines += _travels(program)
    chip = chip_of(device)
    if chip is not None:
        lines.append(f"a step takes at least, on {chip.name} (data sheet)")
        total = 0.0
        for name, phase in floors(verdict.blueprint, verdict.config, verdict.mesh).items():
            seconds = phase.seconds(chip)
            total += seconds
            lines.append(f"  {name:<24}{seconds * 1e3:8.1f} ms  ({phase.bound(chip)})")
        images = verdict.config.batch_size / total
        lines.append(f"  {'together':<24}{total * 1e3:8.1f} ms  ({images:,.0f} images/s)")
    return lines


def _travels(program: Program) -> list[str]:
    """Collectives by kind, inside and outside of loops."""
    tokens = set(program.in_decode_loop)
    groups: dict[tuple[str, str], list[float]] = {}
    for c in program.collectives:
        where = "a token" if c in tokens else "a turn of a loop" if c.loop else "a step"
        group = groups.setdefault((c.kind, where), [0, 0])
        group[0] += c.count
        group[1] += c.count * c.bytes
    lines = []
    for (kind, where), (count, size) in sorted(groups.items(), key=lambda g: -g[1][1]):
        lines.append(f"  {kind:<20}{count:5.0f} x {where:<18}{size / 2**20:10.1f} MiB")
    return lines
