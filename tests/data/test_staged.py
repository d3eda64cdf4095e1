"""What datasets, feature caches and files of captions share: see `data.staged`."""

import pytest

from har_jax.data.staged import Staged
from har_jax.errors import UserError

NAMES = ["a", "b", "c", "d"]


def make(out, *, part=(0, 1), key="k", anew=False, overwrite=False, written=None):
    """A file of one line per shard; True once it is there."""
    place = Staged(out, "file of lines", "")
    place.check_free(overwrite=overwrite)
    with place.locked(part):
        place.begin({"lines": key}, anew=anew)
        for name in NAMES[part[0] :: part[1]]:
            if place.record(name) is None:
                with place.writing(name) as (path, record):
                    path.write_text(f"{key} {name}\n")
                    record["length"] = len(name)
                    if written is not None:
                        written(name)
        records = [place.record(name) for name in NAMES]
        if None in records:
            return out.exists()

        def arrange():
            assert records == [{"length": 1}] * 4
            shards = [place.path / "shards" / name for name in NAMES]
            place.whole.write_text("".join(shard.read_text() for shard in shards))

        place.finish(arrange, overwrite=overwrite)
    return True


def test_a_file_made_of_parts(tmp_path):
    out = tmp_path / "lines.txt"
    assert not make(out, part=(1, 2)) and not out.exists()
    assert make(out, part=(0, 2))
    assert out.read_text() == "k a\nk b\nk c\nk d\n"
    with pytest.raises(UserError, match=r"lines\.txt exists; choose another --out or pass --over"):
        make(out, key="other")
    assert make(out, key="other", overwrite=True) and out.read_text().startswith("other a")
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]


def test_what_is_finished_is_not_made_again(tmp_path):
    out, made = tmp_path / "lines.txt", []

    def stop(name):
        made.append(name)
        if name == "c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        make(out, written=stop)
    with pytest.raises(UserError, match=r"unfinished file of lines with another lines; remove it"):
        make(out, key="other")
    assert make(out, written=made.append)
    assert made == ["a", "b", "c", "c", "d"]
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "two", written=stop)
    assert make(tmp_path / "two", key="other", anew=True)
    assert (tmp_path / "two").read_text().count("other") == 4


def test_two_processes_do_not_write_one_part(tmp_path):
    out = tmp_path / "lines.txt"

    def meanwhile(name):
        with pytest.raises(UserError, match="another process is writing"):
            make(out, part=(0, 2))
        if name == "a":
            assert not make(out, part=(1, 2))  # another part is free

    assert make(out, part=(0, 2), written=meanwhile)
