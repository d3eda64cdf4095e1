"""Imports point downward, and only one file knows each heavy library."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "har_jax"

# A module may import only from rooms that stand before its own (or from its own room).
LAYERS = [
    {"errors", "types", "version"},
    {"files", "sharding", "progress", "text"},
    {"config", "flags", "metrics"},
    {"models"},
    {"interchange", "checkpoint"},
    {"data", "decoding", "rewards"},
    {"assembly"},
    {"pretrained"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"stages"},
    {"preparation"},
    {"train", "evaluate", "caption", "doctor", "export", "prepare"},
    {"experiments"},
    {"reproduce"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# library → the files that may import it (a room ends in a slash)
ONLY = {
    "orbax": ["checkpoint.py"],
    "safetensors": ["interchange/"],
    "tensorflow_datasets": ["data/"],
    "grain": ["data/"],
    "pycocoevalcap": ["metrics/"],
    "tensorboardX": ["training/writers.py"],
}
# rooms that stay free of JAX: usable, and testable, on a machine without it
NO_JAX = {"errors", "version", "config", "text", "metrics", "data", "progress"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "har_jax":
                yield from (f"har_jax.{alias.name}" for alias in node.names)


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    room = room_of(path)
    if room == "__init__":
        return  # the public face gathers from everywhere
    assert room in LEVEL, f"{room} has no place in LAYERS"
    name = str(path.relative_to(PACKAGE))
    for module in imports(path):
        top, *rest = module.split(".")
        if top == "har_jax" and rest and rest[0] in LEVEL and rest[0] != room:
            target = rest[0]
            both_rewards = name == "rewards/callback.py"
            assert LEVEL[target] < LEVEL[room] or (
                LEVEL[target] == LEVEL[room] == 0 and not both_rewards
            ), f"{name} (level {LEVEL[room]}) imports {module} (level {LEVEL[target]})"
        for library, allowed in ONLY.items():
            if top == library:
                assert any(
                    name == a or (a.endswith("/") and name.startswith(a)) for a in allowed
                ), f"{name} imports {library}, which belongs to {allowed}"
        if top in ("jax", "flax") and (room in NO_JAX or room == "rewards"):
            assert name == "rewards/callback.py", f"{name} imports {top}"


def test_every_room_is_listed():
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert rooms <= set(LEVEL), rooms - set(LEVEL)
