"""Where things are written: links and mount points, found out before the work is done; and JSON."""

import json
import os
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_jax.data.staged import Staged
from har_jax.errors import UserError
from har_jax.evaluation.score import check_out
from har_jax.files import dumps, followed, plain, write_json
from har_jax.interchange import hf_dir
from har_jax.training import run_dir


@pytest.mark.parametrize("there", [True, False], ids=["to a directory", "to nothing yet"])
def test_what_is_made_appears_where_a_link_leads(tmp_path, there):
    """And is made on the disk that it leads to."""
    for name in ("staged", "model"):
        if there:
            (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)

    place = Staged(tmp_path / "staged", "thing", "mark", resumes=False)
    place.check_free(overwrite=False)
    assert place.path.parent == tmp_path / "disk"
    with place.locked():
        place.begin({}, anew=False)

        def arrange():
            place.whole.mkdir()
            (place.whole / "mark").write_text("")

        place.finish(arrange, overwrite=False)
    assert (tmp_path / "staged").is_symlink() and (tmp_path / "disk/staged/mark").is_file()

    with hf_dir.staging(tmp_path / "model") as made:
        (made / "config.json").write_text("{}")
    assert (tmp_path / "model").is_symlink() and (tmp_path / "disk/model/config.json").is_file()
    assert sorted(os.listdir(tmp_path / "disk")) == ["model", "staged"]


def test_what_is_replaced_is_what_a_link_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/mark").write_text("old")
    (tmp_path / "link").symlink_to("disk")
    place = Staged(tmp_path / "link", "thing", "mark", resumes=False)
    place.check_free(overwrite=True)
    with place.locked():
        place.begin({}, anew=False)

        def arrange():
            place.whole.mkdir()
            (place.whole / "mark").write_text("new")

        place.finish(arrange, overwrite=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/mark").read_text() == "new"


def test_results_go_where_a_link_leads(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    out = check_out(tmp_path / "link")
    out.mkdir()
    assert (tmp_path / "nowhere").is_dir()


def test_links_in_a_circle_and_mount_points(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="circle of links"):
        Staged(tmp_path / "a", "thing", "mark")
    with pytest.raises(UserError, match="circle of links"):
        check_out(tmp_path / "a")
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: os.path.basename(path) == "volume")
    with pytest.raises(UserError, match=r"mount point.*give a directory below it"):
        Staged(tmp_path / "volume", "thing", "mark").check_free(overwrite=False)
    with (
        pytest.raises(UserError, match="mount point"),
        hf_dir.staging(tmp_path / "volume"),
    ):
        pass
    assert followed(tmp_path / "volume") == tmp_path / "volume"


def test_a_run_lies_where_a_link_leads(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with run_dir.hold(tmp_path / "link"):
        assert (tmp_path / "nowhere" / run_dir.LOCK).is_file()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UserError, match="circle of links"), run_dir.hold(tmp_path / "circle"):
        pass


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.floats(width=32).map(np.float32)
    | st.lists(st.floats(), max_size=3).map(np.array)
    | st.just(pathlib.Path("/a b")),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.tuples(inside, inside)
        | st.dictionaries(st.text("ab\u2028", max_size=3) | st.integers(0, 9), inside, max_size=4)
    ),
    max_leaves=12,
)


@given(ANYTHING, st.sampled_from([None, 1, 2]))
def test_what_is_written_is_what_json_would_read(value, indent):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "value.json"
        write_json(file, value, indent)
        text = file.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=_refuse) == json.loads(json.dumps(plain(value)))
    assert text.count("\n") == dumps(value, indent).count("\n") + 1, "for people to read"


def _refuse(name):
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("value", [object(), {"a": [object()]}, {None: object()}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value):
    file = tmp_path / "value.json"
    write_json(file, {"old": True})
    with pytest.raises(TypeError, match="JSON cannot hold <object object"):
        write_json(file, value)
    assert json.loads(file.read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]
