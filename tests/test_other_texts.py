"""The whole way with texts of another kind: a decoder without BOS, in a padded vocabulary, whose
captions several ids may end, on a dataset that counts other words than PTB's."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import har_jax
from har_jax import config_file, evaluate, export, prepare, train
from har_jax.checkpoint import Checkpoints
from har_jax.data.dataset import open_split
from har_jax.errors import UserError
from har_jax.interchange.families.mistral import save_mistral
from har_jax.loading.parts import read_parts
from har_jax.models.captioner import Captioner
from har_jax.models.decoders import Mistral, MistralConfig
from har_jax.models.functional import split
from har_jax.sessions import doctor
from har_jax.sessions.plan import plan_session
from har_jax.text.tokenizer import load_tokenizer
from har_jax.training.run_dir import open_run, run_info
from tests.conftest import ROOT
from tests.test_export import load_llava
from tests.text.families import llama3, qwen2
from tests.training.commands import train_arguments

ROWS = 512


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words") / "data"
    sizes = ["--train=16", "--val=4", "--test=8"]
    assert prepare.main(["scenes", f"--out={directory}", *sizes, "--words=whitespace"]) == 0
    return directory


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Mistrals with the tokenizers of others, as their directories are."""
    root = tmp_path_factory.mktemp("decoders")
    for make in (qwen2, llama3):
        directory = make(root / make.__name__)
        ends = json.loads((directory / "config.json").read_text())
        tokenizer = load_tokenizer(directory)
        config = MistralConfig(
            vocab_size=ROWS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=None,
            bos_token_id=ends["bos_token_id"],
            eos_token_id=tokenizer.eos_ids,
        )
        graphdef, state = nnx.split(Mistral(config, rngs=nnx.Rngs(2)))
        state = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, state)
        save_mistral(nnx.merge(graphdef, state), directory)
        # Saving a model writes its config.json anew; the others stay.
        assert load_tokenizer(directory).eos_ids == tokenizer.eos_ids
    return root


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def arguments(workspace, data, decoder, run, stage="mle", **changes):
    own = {"data__dir": data, "model__lm": decoder, "data__val_split": "", "data__max_tokens": 64}
    return train_arguments(workspace, run, stage, **{**own, **changes})


def planned(argv):
    parsed, overrides = train.parse(argv)
    return plan_session(config_file.load(parsed.config, overrides), "unused")


def test_trained_and_evaluated(workspace, data, decoders, tmp_path, capsys):
    mle, scst = tmp_path / "mle", tmp_path / "scst"
    given = (workspace, data, decoders / "qwen2")
    assert train.main(arguments(*given, mle, steps=2)) == 0
    own = {"scst__samples": 3, "scst__reward": "cider_d+0.5*bleu", "init_from": mle, "steps": 2}
    argv = arguments(*given, scst, "scst", **own)
    assert train.main(argv) == 0
    signature = json.loads((scst / "run.json").read_text())["reward_signature"]
    assert signature.count("+words=whitespace") == 2 and "ptb" not in signature
    plan = planned(argv)
    found = {finding.name: finding for finding in doctor.examine_texts(plan)}
    assert not [f for f in found.values() if f.severity == "stop"], found
    assert "names a BOS" in found["end"].text
    # Evaluation counts the dataset's words, too.
    out = tmp_path / "out"
    flags = [f"--checkpoint={scst}", "--step=latest", f"--out={out}"]
    assert evaluate.main(flags) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert "+words=whitespace" in scores["signature"]
    assert "made for English" in scores["skipped"]["METEOR"]
    capsys.readouterr()
    assert evaluate.main([*flags, "--words=ptb"]) == 2
    assert "prepared with --words=whitespace, and words=ptb" in capsys.readouterr().err
    with pytest.raises(UserError, match="prepared with --words=whitespace, and words=icu are"):
        planned([*argv, "--config.data.words=icu"])


@pytest.mark.parametrize("family", ["qwen2", "llama3"])
def test_transformers_writes_the_same_captions(workspace, data, decoders, family, tmp_path):
    """Which any of the ends may end."""
    run = tmp_path / "run"
    argv = arguments(workspace, data, decoders / family, run)
    parsed, overrides = train.parse(argv)
    config = config_file.load(parsed.config, overrides)
    parts = read_parts(config.model)
    open_run(run, config, run_info(config, base=parts.identity))
    drawn = split(Captioner(parts.blueprint.config, rngs=nnx.Rngs(5)))[1]
    params = {k: v * (5 if v.ndim > 1 else 1) for k, v in drawn.items()}
    params = {k: v for k, v in params.items() if parts.blueprint.is_trained(k)}
    checkpoints = Checkpoints(run)
    checkpoints.save(1, params, {"count": np.zeros(2)}, {})
    checkpoints.wait()
    checkpoints.close()
    assert export.main([f"--checkpoint={run}", f"--out={tmp_path / 'hf'}", "--step=1"]) == 0

    captioner = har_jax.load_captioner(run, step=1)
    tokenizer, shape = captioner.tokenizer, captioner.blueprint.config
    assert shape.bos_id == tokenizer.bos_id and shape.eos_ids == tokenizer.eos_ids
    assert (shape.bos_id is None) == (family == "qwen2") and len(shape.eos_ids) > 1
    again = har_jax.load_captioner(tmp_path / "hf")
    assert again.blueprint.config.eos_ids == shape.eos_ids
    assert again.blueprint.config.bos_id == shape.bos_id

    test = open_split(data, "test")
    pixels = np.stack([captioner.preprocessor(test.read(i)) for i in range(len(test))])
    ours, lengths = captioner.generate_tokens(pixels)
    np.testing.assert_array_equal(again.generate_tokens(pixels)[0], ours)
    model = load_llava(tmp_path / "hf")
    assert model.generation_config.eos_token_id == list(shape.eos_ids)
    image_id = model.config.image_token_id
    asked = [*tokenizer.begin, *[image_id] * shape.visual_tokens]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("<image>" * shape.visual_tokens).input_ids == asked
    with torch.no_grad():
        written = model.generate(
            input_ids=torch.tensor([asked] * len(pixels)),
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
        )[:, len(asked) :].numpy()
    padded = np.full_like(ours, tokenizer.eos_id)
    padded[:, : written.shape[1]] = written
    np.testing.assert_array_equal(padded, ours)
    last = np.take_along_axis(ours, lengths[:, None] - 1, axis=1)[:, 0]
    assert np.isin(last[lengths < ours.shape[1]], shape.eos_ids).all()
