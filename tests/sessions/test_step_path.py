"""How much code an SCST step runs through, from a batch of images to the update.

    pytest -s tests/sessions/test_step_path.py

prints the functions by file. The step is traced, not run: the reward's host side, the doctor,
guards and the log are not in it.
"""

from __future__ import annotations

import ast
import collections
import functools
import pathlib
import sys

import jax

import har_jax
from har_jax import config_file
from har_jax.loading.blueprint import draw
from har_jax.sessions.meshes import choose_mesh
from har_jax.sessions.preflight import PROGRAMS

PACKAGE = pathlib.Path(har_jax.__file__).parent


@functools.cache
def functions_of(file: str) -> dict[int, ast.FunctionDef]:
    """By the line that their code object begins at: that of the first decorator."""
    found = {}
    for node in ast.walk(ast.parse(pathlib.Path(file).read_text())):
        if isinstance(node, ast.FunctionDef):
            found[min([node.lineno, *(d.lineno for d in node.decorator_list)])] = node
    return found


def lines_run(action) -> dict[str, set[int]]:
    """{file of the package: the lines of its functions that were called}."""
    called = collections.defaultdict(set)

    def seen(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(f"{PACKAGE}/"):
            called[frame.f_code.co_filename].add(frame.f_code.co_firstlineno)

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(before)
    found = collections.defaultdict(set)
    for file, starts in called.items():
        for start in starts:
            if node := functions_of(file).get(start):  # a class's body and lambdas are none
                found[file] |= set(range(node.lineno, node.end_lineno + 1))
    return found


def test_a_step_runs_through_little_code(workspace, monkeypatch):
    models = workspace / "models"
    given = {"model.encoder": f"{models}/clip-l", "model.lm": f"{models}/mistral"}
    config = config_file.load("scst:tiny", {**given, "init_from": "a run", "data.max_tokens": "20"})
    blueprint = draw(config.model)
    mesh = choose_mesh(blueprint, config, jax.devices()[:1])
    traced = []

    def trace(function, *arguments):
        traced.append(lines_run(lambda: function.trace(*arguments)))

    monkeypatch.setattr("har_jax.sessions.preflight._lower", lambda f, _, *a: trace(f, *a))
    with jax.set_mesh(mesh):
        PROGRAMS["train"](blueprint.placed_on(mesh), config, mesh, "cpu")
    lines = {str(pathlib.Path(f).relative_to(PACKAGE)): len(n) for f, n in traced[0].items()}
    lines.pop("sessions/preflight.py")  # what stands in for the reward
    for file, n in sorted(lines.items()):
        print(f"{n:5d}  {file}")
    print(f"{sum(lines.values())} lines of {len(lines)} files")
    assert {"decoding/loop.py", "objectives/self_critical.py", "training/step.py"} <= lines.keys()
    assert sum(lines.values()) <= 1200
