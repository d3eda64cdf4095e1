"""Directories of the hub: their names, their staging, their fingerprints."""

import pytest

from har_jax.interchange import hf_dir
from har_jax.interchange.families.mistral import load_mistral, save_mistral
from har_jax.models.decoders import Mistral
from tests.interchange.weight_files import (
    LM,
    NORM,
    message,
    put,
    random,
    tensors_of,
)


def test_hub_names_go_through_the_cache(monkeypatch, saved):
    import huggingface_hub
    from huggingface_hub import errors

    calls = []

    def download(name, **_):
        calls.append(name)
        return str(saved / "lm")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_mistral("some-org/some-model")
    assert calls == ["some-org/some-model"]

    def offline(name, **_):
        raise errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "neither in the local cache nor" in message(lambda: load_mistral("some-org/some-model"))

    def odd(name, **_):
        raise OSError("disk full\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", odd)
    assert "disk full" in message(lambda: load_mistral("some-org/some-model"))


def test_staging_leaves_nothing_half_written(tmp_path):
    def fail() -> None:
        with hf_dir.staging(tmp_path / "out") as made:
            (made / "half").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with hf_dir.staging(tmp_path / "out") as made:
        (made / "whole").write_text("x")
        assert not (tmp_path / "out").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["out"]

    def again() -> None:
        with hf_dir.staging(tmp_path / "out"):
            pass

    assert "exists already" in message(again)


def test_saving_beside_a_tokenizer_keeps_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    save_mistral(random(Mistral, LM), tmp_path)
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]


def test_fingerprints_follow_the_weights(saved, lm):
    before = hf_dir.weights_fingerprint(lm)
    assert before.startswith("sha256:")
    assert before == hf_dir.weights_fingerprint(saved / "lm")
    tensors = tensors_of(lm)
    tensors[NORM][0] += 1
    put(lm, tensors)
    assert hf_dir.weights_fingerprint(lm) != before
