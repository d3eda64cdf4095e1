"""An exported directory, whole and with its card, to the Hugging Face hub: one commit, or none."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

from har_jax.errors import UserError
from har_jax.foreign import listed
from har_jax.interchange import hf_dir, hub, peft, safetensors_file

CARD = "README.md"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def check_login(repo: str) -> None:
    """Before the work: whether `repo` can be a name there, and huggingface_hub's token is known.

    Raises:
      UserError: it cannot, there is no token, or the hub does not take it or does not answer.
    """
    import huggingface_hub
    from huggingface_hub import errors, utils

    name = hub.parsed(repo)
    try:
        utils.validate_repo_id(repo)
    except errors.HFValidationError:
        name = None
    if name is None or name.revision:
        raise UserError(f"--push={repo} can be no model's name on the hub; give owner/name")
    if not huggingface_hub.get_token():
        raise UserError(
            f"--push={repo} needs a token of the Hugging Face hub that may write; run "
            "`hf auth login`, or set HF_TOKEN"
        )
    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # the HTTP library's own errors differ between its versions
        raise UserError(f"--push={repo}: {_why(error, repo)}; nothing was uploaded") from error


def check_whole(directory: str | os.PathLike[str]) -> None:
    """That a directory is an export with all its files and a card that the hub will take.

    Raises:
      UserError: it is not; says what is wrong.
    """
    place = pathlib.Path(directory)
    if not place.is_dir():
        raise UserError(f"there is no directory {place}; give --checkpoint=RUN, to export it first")
    wrong = [*_wrong_files(place), *_wrong_card(place / CARD)]
    if wrong:
        raise UserError(
            f"{place} is no whole export: {listed(wrong, '; ')}; nothing was uploaded. Export the "
            "run again, into another directory"
        )


def _wrong_files(place: pathlib.Path) -> Iterator[str]:
    """What a directory lacks of its kind, or what in it is broken."""
    try:
        if (place / peft.ADAPTER_CONFIG).exists():
            peft.adapter_settings(place)
            safetensors_file.read_header(place / peft.ADAPTER)
            peft.read_projector(place)
            return
        kind = hf_dir.model_type_of(place)
        if kind is None:
            yield "it has no config.json"
            return
        yield from hf_dir.open_weights(place)[1]
    except UserError as error:
        yield str(error)
        return
    needed = [("generation_config.json",), _TOKENIZERS, *([_PROCESSORS] if kind == "llava" else [])]
    for names in needed:
        if not any((place / name).is_file() for name in names):
            yield f"it has no {' or '.join(names)}"


def _wrong_card(file: pathlib.Path) -> Iterator[str]:
    """What huggingface_hub finds of a card without asking the hub."""
    from huggingface_hub import ModelCard

    if not file.is_file():
        yield f"it has no {CARD}"
        return
    try:
        card = ModelCard(file.read_text(encoding="utf-8"))  # which parses `model-index` too
    except Exception as error:  # YAML's errors, and others
        yield f"{CARD}: {hub.reason(error)}"
        return
    data = card.data.to_dict()
    if lacking := [key for key in ("library_name", "pipeline_tag", "tags") if not data.get(key)]:
        yield f"{CARD} has no {listed(lacking)} in its front matter"
    if not card.text.strip():
        yield f"{CARD} has no text"


def push(directory: str | os.PathLike[str], repo: str, *, private: bool = False) -> str:
    """Uploads a directory as a commit of a model of the hub, which is made if need be; returns
    the commit's address. Weights of an older export that are not in this one are removed there.

    Raises:
      UserError: the directory is not whole, or the hub refuses; it stays where it is.
    """
    check_whole(directory)
    check_login(repo)
    try:
        return _commit(pathlib.Path(directory), repo, private)
    except Exception as error:  # the HTTP library's own errors differ between its versions
        retry = f"python -m har_jax.export --out={os.fspath(directory)} --push={repo}"
        retry += " --private" if private else ""
        why = str(error) if isinstance(error, UserError) else _why(error, repo)
        raise UserError(
            f"{os.fspath(directory)} was not uploaded to {repo}: {why}; it is whole, so try again "
            f"with {retry}"
        ) from error


def _commit(place: pathlib.Path, repo: str, private: bool) -> str:
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = huggingface_hub.HfApi()
    # None leaves the choice to the owner's settings, and an existing model as it is.
    api.create_repo(repo, private=private or None, exist_ok=True)
    info = api.model_info(repo)
    if private and not info.private:
        raise UserError(
            "a model of that name is there, and public; make it private on the hub, or give "
            "another name"
        )
    files = sorted(f for f in place.iterdir() if f.is_file() and not f.name.startswith("."))
    ours = {file.name for file in files}
    there = {each.rfilename for each in info.siblings or ()}
    stale = sorted(name for name in there - ours if "/" not in name and name.endswith(_WEIGHTS))
    operations: list[Any] = [CommitOperationAdd(file.name, file) for file in files]
    operations += [CommitOperationDelete(name) for name in stale]
    # One commit: `upload_folder` may make several, of which a failure would leave the first.
    message = "Upload a captioner of har_jax"
    return str(api.create_commit(repo, operations, commit_message=message).commit_url)


def _why(error: BaseException, repo: str) -> str:
    """What the hub or the network says, in words; never a token."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if status == 401:
        return "the hub does not take the token; run `hf auth login`"
    if status == 403:
        return f"the token may not write to {repo}; make one that may, or give another owner"
    if status is not None:
        return f"the hub answers with status {status}"
    return f"the hub cannot be reached ({hub.reason(error)})"
