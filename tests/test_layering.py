"""Imports point downward, file by file, and only one file knows each heavy library.

The table is that of `docs/architecture.md`, which is read here: a room, or a file named by itself,
stands on one floor. A file imports from lower floors; from its own room; and, on its own floor,
from no other room. There are no circles anywhere.
"""

import ast
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "har_jax"
# Names for users, and where these live: imported by nobody of ours, and importing nobody at once.
DOORS = [PACKAGE / room / "__init__.py" for room in ("", "metrics", "rewards")]
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p not in DOORS)


def floors():
    """{"models/": 7, "models/functional.py": 5, ...} from the block that begins with "floor"."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"^    floor .*?\n\n", text, re.S | re.M)[0]
    found = {}
    for line in block.splitlines()[1:]:
        match = re.match(r"    +(-?\d+)  (.*?)(?:  +.*)?$", line)
        if match:
            for place in match[2].split():
                found[place] = int(match[1])
    return found


FLOORS = floors()

# library → the files that may import it (a room ends in a slash)
ONLY = {
    "orbax": ["checkpoint.py"],
    "safetensors": ["interchange/"],
    "tensorflow_datasets": ["data/"],
    "grain": ["data/"],
    "pycocoevalcap": ["metrics/"],
    "tensorboardX": ["training/loggers.py"],
    "jinja2": ["reports/"],
}
# rooms that stay free of JAX: usable, and testable, on a machine without it
NO_JAX = ("errors.py", "version.py", "config.py", "text/", "metrics/", "data/", "progress.py")
NO_JAX += ("reports/", "files.py", "presets/")


def name_of(path):
    return str(path.relative_to(PACKAGE))


def place_of(name):
    """The longest entry of the table that holds a file."""
    fitting = [p for p in FLOORS if p == name or (p.endswith("/") and name.startswith(p))]
    return max(fitting, key=len, default=None)


VERSION = "har_jax.version"
MODULES = {}
for _path in FILES:
    _parts = _path.relative_to(PACKAGE).with_suffix("").parts
    MODULES[".".join(("har_jax", *_parts)).removesuffix(".__init__")] = name_of(_path)


def imports(path):
    """(module, whether at run time): every module that a file imports, wherever in it."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in guarded
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module, id(node) not in guarded


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downward(path):
    name = name_of(path)
    place = place_of(name)
    assert place, f"{name} has no floor in docs/architecture.md"
    for module, at_run_time in imports(path):
        top = module.split(".")[0]
        target = MODULES.get(module)
        if target and target != name:
            there = place_of(target)
            own_room = there == place and place.endswith("/")
            assert own_room or FLOORS[there] < FLOORS[place], (
                f"{name} (floor {FLOORS[place]}) imports {target} (floor {FLOORS[there]})"
            )
        for library, allowed in ONLY.items():
            if top == library:
                assert any(name == a or (a.endswith("/") and name.startswith(a)) for a in allowed)
        if top in ("jax", "flax") and at_run_time:
            free = any(name == p or (p.endswith("/") and name.startswith(p)) for p in NO_JAX)
            assert not free or name == "rewards/callback.py", f"{name} imports {top}"


@pytest.mark.parametrize("path", DOORS, ids=name_of)
def test_doors_import_nothing_at_once(path):
    for module, at_run_time in imports(path):
        assert not at_run_time or module in ("typing", "__future__", "importlib", VERSION), module
    room = importlib.import_module(".".join(path.relative_to(ROOT).parent.parts))
    own_files = {file.stem for file in path.parent.glob("*.py")} - {"version"}
    for name in {*room.__all__} - {"__version__"}:
        assert name not in own_files, f"{name} would be hidden by the file {name}.py"
        assert callable(getattr(room, name))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_of_ours_goes_through_a_door(path):
    rooms = ("har_jax.metrics", "har_jax.rewards")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in rooms:
            for alias in node.names:
                assert f"{node.module}.{alias.name}" in MODULES, f"{name_of(path)}: {alias.name}"


def test_there_is_no_circle():
    edges = {
        name_of(path): {MODULES[m] for m, _ in imports(path) if m in MODULES} - {name_of(path)}
        for path in FILES
    }
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            trail.append(name)
            for other in sorted(edges[name]):
                visit(other)
            done.add(trail.pop())

    for name in sorted(edges):
        visit(name)


def test_every_place_is_there():
    for place in FLOORS:
        assert (PACKAGE / place).exists(), f"docs/architecture.md lists {place}"


def test_sizes():
    """Files under 400 lines, functions under 80."""
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, name_of(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 80, f"{name_of(path)}: {node.name} has {length} lines"
