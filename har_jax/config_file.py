"""What `--config=` names: a Python file of one's own, or a preset of the package.

scst:tiny               har_jax/presets/scst.py, its preset `tiny`
configs/scst.py:tiny    a file with `get_config(preset)`, which returns a `Config` (or nested
                        settings: a dict, or anything with `to_dict`)
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from har_jax import presets
from har_jax.config import Config, check, place
from har_jax.errors import UserError, did_you_mean, raised_by
from har_jax.settings import LocalPath, tell_old_names


def load(spec: str, overrides: Mapping[str, str] | None = None, *, alone: bool = False) -> Config:
    """The configuration `FILE[:PRESET]` or `FAMILY[:PRESET]`, with overrides such as
    `{"optim.lr": "1e-5"}`; `alone` as in `config.check`.

    Raises:
      UserError: there is no such file, family, preset or key, or the settings contradict another.
    """
    path, _, preset = spec.partition(":")
    module = _module(spec, path)
    return changed(_config(spec, module, preset), overrides or {}, alone=alone)


def changed(config: Config, overrides: Mapping[str, str], *, alone: bool = False) -> Config:
    """A configuration with overrides as the command line gives them.

    Raises:
      UserError: there is no such key, or the settings contradict another.
    """
    settings = config.to_dict()
    for key, text in overrides.items():
        section, leaf = place(settings, key)
        section[leaf] = text if isinstance(section[leaf], str) else _literal(text)
    config = Config.from_dict(settings)
    check(config, alone=alone)
    return config


def _config(spec: str, module: ModuleType, preset: str) -> Config:
    """What `get_config` makes."""
    with _told(f"--config={spec}: get_config raised"):
        made = module.get_config(preset) if preset else module.get_config()
        if not isinstance(made, Config | dict) and hasattr(made, "to_dict"):
            made = made.to_dict()
    if isinstance(made, Config):
        return made
    if not isinstance(made, Mapping):
        raise UserError(
            f"--config={spec}: get_config returned a {type(made).__name__}; it must return a "
            "Config, or a dict of settings"
        )
    tell_old_names(made)
    return Config.from_dict(made)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever a user's own code raises, `sys.exit` too, as a line that names its place."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} {raised_by(error)}") from error


def _module(spec: str, path: str) -> ModuleType:
    """The config file, executed, or the package's module of presets."""
    file = pathlib.Path(LocalPath().checked(path, "--config"))
    if not file.is_file():
        if path in presets.FAMILIES:
            return importlib.import_module(f"{presets.__name__}.{path}")
        raise UserError(
            f"--config={spec}: there is no file {path!r}, and no preset family of that name"
            f"{did_you_mean(path, presets.FAMILIES)}; give a config file such as "
            f"configs/scst.py:tiny, or a preset of {', '.join(presets.FAMILIES)} such as scst:tiny"
        )
    if file.suffix != ".py":
        raise UserError(f"--config={spec}: {path!r} is not a Python file (*.py)")
    found = importlib.util.spec_from_file_location(f"har_jax_config_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    with _told(f"--config={spec}: {file} raised"):
        try:
            found.loader.exec_module(module)
        except SyntaxError as error:
            raise UserError(f"--config={spec}: {file} is not valid Python: {error}") from error
        except ImportError as error:
            raise UserError(
                f"--config={spec}: {file} cannot be imported: {error}; config files start from a "
                "Config of har_jax.presets, as configs/mle.py does"
            ) from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config={spec}: {file} has no function get_config(preset)")
    return module


def _literal(text: str) -> Any:
    """A Python literal where the text is one, `true` and `false` in any case."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        with warnings.catch_warnings(action="ignore"):  # "1if" is odd, and that is told below
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
