"""Functions of a user's own, by their path: `package.module:function`, and their signatures."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import tokenize
from collections.abc import Callable
from typing import Any

from har_jax.errors import UserError, did_you_mean, raised_by


def load_function(path: str, what: str) -> Callable[..., Any]:
    """The function that a path names; `what` says in errors what it is for.

    Raises:
      UserError: no such module or function, or it is not callable.
    """
    module_name, _, attribute = path.partition(":")
    fix = "write package.module:function"
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", path):
        raise UserError(f"{what} {path!r} is no path of a function; {fix}")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, attribute, None)
    except ModuleNotFoundError as error:
        # A module that the user's own module lacks is named too.
        raise UserError(
            f"{what} {path!r}: there is no module {error.name!r}; put its directory on PYTHONPATH "
            f"and {fix}"
        ) from error
    except (Exception, SystemExit) as error:
        told = raised_by(error)
        raise UserError(f"{what} {path!r}: importing {module_name} raised {told}") from error
    if not callable(function):
        kind = "no" if function is None else f"a {type(function).__name__} and no function"
        near = did_you_mean(attribute, vars(module))
        raise UserError(f"{what} {path!r}: {module_name} has {kind} {attribute!r}{near}")
    return function


def signature_of(path: str, function: Callable[..., Any]) -> str:
    """What a function is recorded as: its own `signature`, or its path with a hash of its source,
    so that an edited function does not pass for the old one. What it calls is not in it."""
    own = getattr(function, "signature", None)
    return own if isinstance(own, str) and own else f"{path}[{_source_hash(function)}]"


def _source_hash(function: Callable[..., Any]) -> str:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # of a file that is no Python
        return "no source"
    return hashlib.sha256(source.encode()).hexdigest()[:8]
