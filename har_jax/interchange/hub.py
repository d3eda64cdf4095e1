"""Models of the Hugging Face hub: their names, and the commit that a name means.

`owner/name`, or `owner/name@REVISION` with a branch, a tag or a commit. A model goes through
huggingface_hub's cache, which answers without a network what was fetched before; whether there is
a token, and where, is huggingface_hub's affair (`hf auth login`, `HF_TOKEN`).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from har_jax.errors import UserError, one_line

_NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ["*.json", "*.safetensors", "*.txt", "tokenizer.model"]


class HubName(NamedTuple):
    """A model of the hub, and which state of it: None is the newest."""

    repo: str
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision, if it is a commit: it means the same files for ever."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parsed(name: str | os.PathLike[str]) -> HubName | None:
    """What a text names on the hub; None if it cannot be such a name. Whether there is a directory
    of that name, which comes first, is not looked at."""
    found = _NAME.fullmatch(os.fspath(name))
    return HubName(*found.groups()) if found else None


def named(name: str | os.PathLike[str]) -> HubName | None:
    """What a text names on the hub; None if something local has that name."""
    return None if os.path.lexists(os.path.expanduser(name)) else parsed(name)


def pinned(name: str | os.PathLike[str], lacking: str = "") -> str:
    """A hub's name with the commit that it means now, `owner/name@COMMIT`; any other text as it is.

    Args:
      lacking: see `fetch`.

    Raises:
      UserError: the hub has no such model, or it cannot be reached and the cache has none.
    """
    on_hub = named(name)
    if on_hub is None or on_hub.commit:
        return os.fspath(name)
    commit = fetch(on_hub, lacking).name  # the cache keeps snapshots by their commits
    return str(HubName(on_hub.repo, commit)) if _COMMIT.fullmatch(commit) else os.fspath(name)


def fetch(name: HubName, lacking: str = "") -> Path:
    """The directory of a model in the cache, fetched if need be: all that is read of a model, and
    no pickled weights.

    Args:
      lacking: what else was looked for under that name, and is not there, for errors.

    Raises:
      UserError: there is none, it may not be read, or nothing can be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    lacking = lacking or f"no directory {name}"
    gone = f"{lacking}, and the hub's model of that name"
    try:
        download = huggingface_hub.snapshot_download
        how: dict[str, Any] = {"allow_patterns": _FILES, "tqdm_class": _bar()}
        return Path(download(name.repo, revision=name.revision, **how))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{gone} is gated: accept its licence on its page at huggingface.co, then run "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{gone} does not exist or is private; check the spelling, or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{lacking}, and the hub's {name.repo} has no revision {name.revision!r}; "
            "give one of its branches, tags or commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{gone} is neither in the local cache nor reachable (offline?); fetch it on a machine "
            f"with a connection (`hf download {name.repo}`) and give the local directory"
        ) from error
    except Exception as error:  # the HTTP library's own errors differ between its versions
        raise UserError(
            f"{gone} could not be fetched: {reason(error)}; try again, or give a local directory"
        ) from error


def _bar() -> type[Any]:
    """huggingface_hub's progress bar, which is silent where no terminal is."""
    from huggingface_hub import utils

    class Bar(utils.tqdm):
        def __init__(self, *args: Any, **settings: Any):
            quiet = settings.get("disable") or not sys.stderr.isatty()
            super().__init__(*args, **settings | {"disable": quiet})

    return Bar


def reason(error: BaseException) -> str:
    """What another library's error says, in a line."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__
