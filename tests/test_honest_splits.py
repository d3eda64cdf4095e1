"""From training on a subset to scoring: what was seen is known, and refused where it is scored."""

import json
import shutil

import pytest

from har_jax import evaluate, prepare, train
from har_jax.config import Config
from har_jax.data import overlap
from har_jax.data.builder import write
from har_jax.data.dataset import open_split
from har_jax.data.subset import Subset, take
from har_jax.errors import UserError
from har_jax.evaluation.leak import check_unseen, trained_on
from har_jax.metrics.cider_d import DocumentFrequency
from har_jax.sessions.plan import plan_session
from har_jax.text import ptb
from tests.conftest import ROOT
from tests.data.test_dataset import forget_sums
from tests.training.commands import train_arguments


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("shutil.which", lambda name: None)  # no Java


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    """One MLE step on 24 of the 48 training images."""
    path = tmp_path_factory.mktemp("runs") / "mle"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        argv = train_arguments(workspace, path, steps=1, data__shots=24, data__val_split="")
        assert train.main(argv) == 0
    return path


def config_of(run, **data):
    values = json.loads((run / "config.json").read_text())
    return Config.from_dict(values | {"data": values["data"] | data})


def copy_of(workspace, path, chosen, *, ids="own"):
    """A dataset of some training images of the workspace, and all its test images."""
    train_split = open_split(workspace / "data", "train")
    rows = [train_split[i] for i in chosen] + list(open_split(workspace / "data", "test"))
    examples = [("test", example) for example in rows]
    write(path, examples, name="made", splits=["test"], description="", settings={}, ids=ids)
    return path


def test_a_run_knows_what_it_was_trained_on(run, workspace):
    part = take(open_split(workspace / "data", "train"), shots=24)
    assert overlap.load(run) == [overlap.image_set(part)]
    data = json.loads((run / "run.json").read_text())["data"]
    assert (data["images"], data["of"], data["split"]) == (24, 48, "train")
    assert data["fingerprint"] == overlap.image_set(part).fingerprint


def test_the_plan_of_a_subset(run, workspace):
    """Lengths, batches and document frequencies are those of the subset alone."""
    plan = plan_session(config_of(run, max_tokens=0), "unused")
    assert isinstance(plan.train_split, Subset) and len(plan.train_split) == 24
    config = config_of(run)
    scst = Config.from_dict(config.to_dict() | {"stage": "scst", "init_from": str(run)})
    plan = plan_session(scst, "unused")
    words = [[ptb.words(t) for t in texts] for texts in plan.train_split.references().values()]
    counted = DocumentFrequency.from_references(words, name="train[24 images]")
    assert f"df[train[24 images],N=24,{counted.fingerprint[:8]}" in plan.reward.signature
    assert plan.trained_on == [*overlap.load(run), overlap.image_set(plan.train_split)]
    with pytest.raises(UserError, match="shots=99 is more than the 48 images"):
        plan_session(config_of(run, shots=99), "unused")
    with pytest.raises(UserError, match="both set; give one"):
        plan_session(config_of(run, shots=24, fraction=0.5), "unused")


def test_a_subset_of_another_size_does_not_resume(run, workspace, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    argv = train_arguments(workspace, tmp_path / "run", data__shots=25, data__val_split="")
    assert train.main(argv) == 2
    assert "config.data.shots was 24 and is now 25" in capsys.readouterr().err


def test_validation_images_must_not_be_trained_on(run, workspace, tmp_path):
    shared = tmp_path / "shared"
    shutil.copytree(workspace / "data", shared)
    index = json.loads((shared / "captions.val.json").read_text())
    other = json.loads((shared / "captions.train.json").read_text())
    index["images"][3]["sha256"] = other["images"][5]["sha256"]
    (shared / "captions.val.json").write_text(json.dumps(index))
    forget_sums(shared)
    config = config_of(run, dir=str(shared), val_split="val", shots=0)
    with pytest.raises(
        UserError, match=r"1 image \(1 by content: .*'val' are also in what 'train' trains"
    ):
        plan_session(config, "unused")


def test_scoring_what_was_trained_on_is_refused(run, workspace, tmp_path, capsys):
    seen = take(open_split(workspace / "data", "train"), shots=24).ids
    position = open_split(workspace / "data", "train").ids.index(seen[0])
    data = copy_of(workspace, tmp_path / "leaky", [position])
    out = tmp_path / "eval"
    flags = [f"--checkpoint={run}", f"--data={data}", f"--out={out}", "--limit=3"]
    assert evaluate.main(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 image (1 by content: ") and "--allow-overlap" in error
    assert not out.exists()


def test_nocaps_from_its_file_to_the_scores_of_each_domain(run, workspace, tmp_path, capsys):
    """With an image that the run was trained on: --allow-overlap scores it and says so."""
    from pycocoevalcap.cider.cider import Cider

    seen = take(open_split(workspace / "data", "train"), shots=24)
    domains = ["in-domain", "near-domain"]
    (tmp_path / "images").mkdir()
    file = {"images": [], "annotations": []}
    for i, example in enumerate([seen[0], *open_split(workspace / "data", "test")]):
        (tmp_path / "images" / f"{i:016x}.jpg").write_bytes(example.image)
        file["images"].append({"id": i, "file_name": f"{i:016x}.jpg", "domain": domains[i % 2]})
        file["annotations"] += [
            {"id": 10 * i + k, "image_id": i, "caption": text}
            for k, text in enumerate(example.captions)
        ]
    (tmp_path / "nocaps.json").write_text(json.dumps(file))
    data, out = tmp_path / "nocaps", tmp_path / "eval"
    arguments = [f"--images={tmp_path / 'images'}", f"--captions={tmp_path / 'nocaps.json'}"]
    assert prepare.main(["nocaps", *arguments, f"--out={data}"]) == 0
    assert "domains: in-domain 9, near-domain 8" in capsys.readouterr().out
    flags = [f"--checkpoint={run}", f"--data={data}", "--split=val", f"--out={out}"]
    assert evaluate.main([*flags, "--allow-overlap"]) == 0
    assert "in-domain: 9 images, CIDEr" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert any("1 image (1 by content" in warning for warning in scores["warnings"])
    assert list(scores["domains"]) == domains
    rows = json.loads((out / "per_image.json").read_text())
    for number, domain in enumerate(domains):
        own = rows[number::2]
        references = {r["image_id"]: [" ".join(ptb.words(t)) for t in r["references"]] for r in own}
        captions = {r["image_id"]: [" ".join(ptb.words(r["caption"]))] for r in own}
        expected, _ = Cider().compute_score(references, captions)
        assert scores["domains"][domain]["CIDEr"] == pytest.approx(expected, abs=1e-9)
        assert scores["domains"][domain]["n_images"] == len(own)
    files = [
        f"--predictions={out / 'predictions.json'}",
        f"--references={tmp_path / 'nocaps.json'}",
    ]
    assert evaluate.main([*files, f"--out={tmp_path / 'again'}"]) == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert again["domains"] == scores["domains"]


def test_what_can_and_cannot_be_checked(run, workspace, tmp_path):
    test = open_split(workspace / "data", "test")
    assert check_unseen(run, test) == []
    whole = open_split(workspace / "data", "train")
    assert "is what the run was trained on" in check_unseen(run, whole)[0]

    older = tmp_path / "older"  # no trained_on.npz: the dataset that it names is asked
    shutil.copytree(run, older)
    (older / overlap.TRAINED_ON).unlink()
    assert trained_on(older) == trained_on(run)
    values = json.loads((older / "config.json").read_text())
    values["data"]["dir"] = str(tmp_path / "gone")
    (older / "config.json").write_text(json.dumps(values))
    assert "was not checked" in check_unseen(older, test)[0]

    (run_without := tmp_path / "unhashed").mkdir()
    for name in ("config.json", "run.json"):
        shutil.copy(run / name, run_without)
    seen = overlap.image_set(whole)
    overlap.save(run_without, [overlap.ImageSet("", seen.ids, frozenset())])
    assert "could not be checked" in check_unseen(run_without, test)[0]
