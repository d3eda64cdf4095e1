"""Every family of decoders against transformers, on drawn configurations, in both layouts."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from har_jax.interchange.families.registry import DECODERS, read_decoder
from har_jax.models.functional import split
from tests.families.drawn import FAMILIES, draw_config, random_torch
from tests.helpers import long

TOLERANCE = 1e-4  # of the output's scale
STEPS = 20


def cases(few: int, all_of_them: int):
    """(family, seed): the first few seeds of every family, the others for `make long`."""
    for family in FAMILIES:
        yield from ((family, seed) for seed in range(few))
        yield from long((family, seed) for seed in range(few, all_of_them))


def assert_close(ours, theirs: torch.Tensor, what: str) -> None:
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), what


@pytest.mark.parametrize("case", cases(3, 60), ids=str)
def test_equals_transformers_and_round_trips(case, tmp_path):
    """Hidden states, logits, 20 greedy tokens; the files that come back are the same bytes."""
    family, seed = case
    hf = draw_config(family, seed)
    theirs = random_torch(hf, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    config = read_decoder(tmp_path / "theirs")
    row = DECODERS[family]
    ours = row.load(tmp_path / "theirs", scan_layers=bool(seed % 2))
    structure, params = split(ours)
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, hf.vocab_size, (2, int(rng.integers(3, 12))))
    with torch.no_grad():
        written = theirs.generate(
            torch.tensor(prefix),
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            use_cache=False,  # its cache of a window of 1 place keeps none
            attention_mask=torch.ones(prefix.shape, dtype=torch.long),
        )
        wanted = theirs(written, output_hidden_states=True)

    @jax.jit
    def run(params, tokens):
        """The whole text at once, and its end as two captions after a shared prefix."""
        model = structure.merge(params)
        n = prefix.shape[1] - 1
        whole, _ = model.prefill(model.embed(tokens))
        _, cache = model.prefill(model.embed(tokens[:, :n]))
        ends = jax.numpy.repeat(model.embed(tokens[:, None, n:]), 2, axis=1)
        apart = model.extend(ends, cache)
        return whole, apart, model.logits(whole)

    hidden, apart, logits = run(params, written.numpy())
    assert_close(hidden, wanted.hidden_states[-1], "hidden")
    for row_of_two in range(2):
        end = wanted.hidden_states[-1][:, prefix.shape[1] - 1 :]
        assert_close(apart[:, row_of_two], end, "a caption after a prefix")
    assert_close(logits, wanted.logits, "logits")
    chosen = np.asarray(logits).argmax(-1)[:, prefix.shape[1] - 1 : -1]
    assert (chosen == written.numpy()[:, prefix.shape[1] :]).all()

    row.save_module(ours, tmp_path / "ours")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert read_decoder(tmp_path / "ours") == config
    again = type(hf).from_pretrained(tmp_path / "ours")
    spelt = json.loads((tmp_path / "ours" / "config.json").read_text())
    ignored = {"dtype", "architectures", "transformers_version", "layer_types", "torch_dtype"}
    for key in set(hf.to_dict()) & set(spelt) - ignored:
        if key == "max_window_layers" or (key.endswith("sliding_window") and not _slides(hf)):
            continue  # what they say of layers that have no window
        assert getattr(again, key) == getattr(hf, key), key


def _slides(hf) -> bool:
    return "sliding_attention" in (getattr(hf, "layer_types", None) or ["sliding_attention"])


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_the_whole(family, tmp_path):
    """Token by token, with a cache of the caption, as the decode loop reads."""
    hf = draw_config(family, 3)
    random_torch(hf, 3).save_pretrained(tmp_path)
    model = DECODERS[family].load(tmp_path, scan_layers=True)
    structure, params = split(model)
    tokens = np.random.default_rng(0).integers(0, hf.vocab_size, (2, 3, 6))
    x_bpd = np.random.default_rng(1).normal(size=(2, 4, model.config.hidden_size))

    @jax.jit
    def run(params, tokens, x_bpd):
        model = structure.merge(params)
        _, cache = model.prefill(x_bpd)
        whole = model.extend(model.embed(tokens), cache)
        apart, written, steps = model.for_decoding(), model.empty_cache(2, 3, 6), []
        for t in range(6):
            hidden, written = apart.step(
                apart.embed(tokens[:, :, t]), cache, written, jax.numpy.int32(t)
            )
            steps.append(hidden)
        return whole, jax.numpy.stack(steps, axis=2)

    whole, steps = run(params, tokens, x_bpd.astype(np.float32))
    np.testing.assert_allclose(whole, steps, atol=2e-5 * float(np.abs(whole).max()))
