"""`har-jax NAME` and `python -m har_jax.NAME` are the same commands, and each explains itself."""

import json
import pathlib
import subprocess
import sys

import pytest

import har_jax
from har_jax.__main__ import main
from har_jax.command_line import COMMANDS, print_captions
from tests.conftest import ROOT

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


def test_as_many_lines_as_captions(capsys):
    """Whatever a model wrote, and whatever files are called."""
    rows = [("a.jpg", "one\ntwo\tthree\r\u2028four \x1b[2J"), ("b\n\u2029c.jpg", "five caf\u00e9")]
    print_captions(rows, as_json=False)
    out = capsys.readouterr().out
    assert out == "a.jpg\tone two three  four  [2J\nb\\n\\u2029c.jpg\tfive caf\u00e9\n"
    print_captions(rows, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(row["image"], row["caption"]) for row in found] == rows


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_output_lacks(monkeypatch, encoding, as_json):
    """A log in another encoding is no reason to fail when the work is done."""
    program = (
        "from har_jax.command_line import print_captions\n"
        "from har_jax.errors import command\n"
        "@command\n"
        "def main(argv=None):\n"
        f"    print_captions([('a.jpg', '\\u2500 caf\\u00e9')], as_json={as_json})\n"
        "raise SystemExit(main())\n"
    )
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert run.returncode == 0 and run.stdout.endswith(b"]\n" if as_json else b"\n")
    if as_json:
        assert json.loads(run.stdout.decode(encoding))[0]["caption"] == "\u2500 caf\u00e9"
    elif encoding != "utf-8":
        assert b"\\u2500 caf" in run.stdout
