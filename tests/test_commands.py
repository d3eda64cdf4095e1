"""`har-jax NAME` and `python -m har_jax.NAME` are the same commands, and each explains itself."""

import pathlib

import pytest

import har_jax
from har_jax.__main__ import main
from har_jax.command_line import COMMANDS

PACKAGE = pathlib.Path(har_jax.__file__).parent


def test_every_command_is_listed_and_none_that_is_not_there(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert main([]) == 0 and capsys.readouterr().out == printed
    marked = 'if __name__ == "__main__"'
    files = [path for path in PACKAGE.glob("*.py") if marked in path.read_text()]
    rooms = [path.parent for path in PACKAGE.glob("*/__main__.py")]
    assert {path.stem for path in [*files, *rooms]} == {*COMMANDS, "__main__"}
    for name, text in COMMANDS.items():
        assert f"\n  {name:10} {text}\n" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert exit_.value.code == 0 and printed.startswith(f"usage: python -m har_jax.{name}")


def test_a_command_fails_as_it_does_by_itself(capsys):
    assert main(["evaluate", "--out=o"]) == 2
    assert capsys.readouterr().err.startswith("error: give either --checkpoint=RUN")
    assert main(["evalute", "--out=o"]) == 2
    assert "no command 'evalute' (did you mean 'evaluate'?)" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*COMMANDS, "__main__"])
def test_commands_are_short(name):
    """A command parses and reports; what it does stands in a room of its own."""
    file = PACKAGE / f"{name}.py"
    file = file if file.exists() else PACKAGE / name / "__main__.py"
    assert len(file.read_text().splitlines()) < 120
