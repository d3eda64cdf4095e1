"""What a run was trained on must not be what it is scored on: found by id and by content."""

from __future__ import annotations

import os

from har_jax.data import overlap
from har_jax.data.dataset import Split, id_space, open_split
from har_jax.data.overlap import ImageSet
from har_jax.data.subset import take
from har_jax.errors import UserError
from har_jax.training.run_dir import read_run

PathLike = str | os.PathLike[str]


def trained_on(run: PathLike) -> list[ImageSet] | None:
    """The images that a run, and the run it started from, were trained on.

    From its `trained_on.npz`, or (runs of older versions) from the dataset that it names; None if
    neither is there.
    """
    found = overlap.load(run)
    if found is not None:
        return found
    config, info = read_run(run)
    data = config.data
    try:
        whole = open_split(data.dir, data.train_split)
        split = take(whole, fraction=data.fraction, shots=data.shots, seed=data.subset_seed)
    except UserError:
        return None
    own = [overlap.image_set(split)]
    parent = (info.get("parent") or {}).get("run")
    if not parent:
        return own
    try:
        before = trained_on(parent)
    except UserError:  # it has moved; what it was trained on is unknown
        return None
    return None if before is None else [*before, *own]


def check_unseen(run: PathLike, split: Split, *, allow: bool = False) -> list[str]:
    """Refuses a split that shares images with what the run was trained on.

    The very split that a run was trained on may be asked for by its name, to see how well it is
    fitted.

    Args:
      allow: only warn.

    Returns:
      Warnings for `scores.json`.

    Raises:
      UserError: images are shared.
    """
    config, _ = read_run(run)
    data = config.data
    same = os.path.realpath(data.dir) == os.path.realpath(split.directory)
    if same and data.train_split == split.name:
        return [f"{split.name!r} of {data.dir} is what the run was trained on"]
    images = trained_on(run)
    where = str(split)
    if images is None:
        return [
            f"whether {where} overlaps with what the run was trained on was not checked: "
            f"{os.fspath(run)} has no {overlap.TRAINED_ON}, and its dataset {data.dir} is not there"
        ]
    shared = overlap.shared(split, images)
    if shared.ids:
        told = f"{shared} of {where} are among those that {os.fspath(run)} was trained on"
        if not allow:
            raise UserError(
                f"{told}: a score of them says little; score other images (`prepare "
                f"--exclude={data.dir}:{data.train_split}` leaves these out), or pass "
                "--allow-overlap, which is noted in scores.json"
            )
        return [told]
    space, hashed = id_space(split.directory), overlap.contents_of(split) is not None
    if not all((space and space == i.ids_of) or (hashed and i.contents) for i in images):
        return [
            f"whether {where} overlaps with what the run was trained on could not be checked: "
            "their ids mean different things and one of them keeps no hashes of its images; "
            "prepare it again"
        ]
    return []
