"""`har_jax.export`: transformers, from files alone, writes the same captions as we do."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tokenizers import Tokenizer

import har_jax
from har_jax import config_file, export, train
from har_jax.checkpoint import Checkpoints
from har_jax.data.dataset import open_split
from har_jax.data.decode import decode
from har_jax.errors import UserError
from har_jax.interchange import llava, llava_processor
from har_jax.interchange.families.mistral import load_mistral
from har_jax.loading.parts import read_parts
from har_jax.models.captioner import Captioner
from har_jax.models.functional import part, prefixed, split
from har_jax.text.tokenizer import load_tokenizer
from har_jax.training.run_dir import open_run, run_info
from tests.conftest import ROOT
from tests.training.commands import train_arguments

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

PROMPT = "a picture of"


def configure(workspace, run, **model):
    changes = {f"model__{key}": value for key, value in model.items()}
    arguments, overrides = train.parse(train_arguments(workspace, run, **changes))
    return config_file.load(arguments.config, overrides)


def make_run(workspace, run, **model):
    """A run directory as training leaves it, of a captioner that was drawn and never trained."""
    config = configure(workspace, run, **model)
    parts = read_parts(config.model)
    open_run(run, config, run_info(config, base=parts.identity))
    lm = prefixed(split(load_mistral(config.model.lm))[1], "lm")
    drawn = split(Captioner(parts.blueprint.config, rngs=nnx.Rngs(5)))[1]
    # Large enough for the captions to depend on the images.
    projector = {k: v * 4 for k, v in drawn.items() if k.startswith("projector.")}
    params = {k: v for k, v in (lm | projector).items() if parts.blueprint.is_trained(k)}
    checkpoints = Checkpoints(run)
    checkpoints.save(1, params, {"count": np.zeros(2)}, {})
    checkpoints.wait()
    checkpoints.close()
    return run


@pytest.fixture(scope="module")
def runs(workspace, tmp_path_factory):
    here = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        make_run(workspace, here / "plain")
        make_run(workspace, here / "prompt", prompt=PROMPT, vision_layer=-1)
        make_run(workspace, here / "pooled", projector="pooled")
    return here


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def load_llava(directory):
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("name", ["plain", "prompt"])
def test_transformers_writes_the_same_captions(workspace, runs, tmp_path, name, capsys):
    prompt = PROMPT if name == "prompt" else ""
    assert export.main([f"--checkpoint={runs / name}", f"--out={tmp_path / 'hf'}"]) == 0
    assert f"its text input is '<image>{prompt}'" in capsys.readouterr().out

    captioner = har_jax.load_captioner(runs / name)
    test = open_split(workspace / "data", "test")
    images = [decode(test[i].image) for i in range(len(test))]
    pixels = np.stack([captioner.preprocessor(image) for image in images])
    ours, lengths = captioner.generate_tokens(pixels)
    assert len({tuple(row) for row in ours}) > len(ours) // 2

    # Back again: bit by bit what the run was, and with its prompt.
    again = har_jax.load_captioner(tmp_path / "hf")
    assert again.params.keys() == captioner.params.keys()
    for key, value in captioner.params.items():
        np.testing.assert_array_equal(again.params[key], value, err_msg=key)
        assert again.params[key].sharding == value.sharding
    configs_of = [c.blueprint.config for c in (again, captioner)]
    assert configs_of[0] == dataclasses.replace(configs_of[1], remat=configs_of[0].remat)
    assert again.config.data.max_tokens == captioner.config.data.max_tokens
    assert again.preprocessor == captioner.preprocessor
    other = har_jax.load_captioner(tmp_path / "hf", prompt="a photo")
    assert list(other.blueprint.config.prompt_ids) == captioner.tokenizer.encode("a photo")[:-1]

    model = load_llava(tmp_path / "hf")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    texts = [f"<image>{prompt}"] * len(images)
    inputs = processor(images=images, text=texts, return_tensors="pt")
    tokenizer, config = captioner.tokenizer, captioner.blueprint.config
    image_id = model.config.image_token_id
    asked = [tokenizer.bos_id, *[image_id] * config.visual_tokens, *config.prompt_ids]
    assert inputs["input_ids"].tolist() == [asked] * len(images)
    assert len(config.prompt_ids) == (0 if name == "plain" else len(tokenizer.encode(PROMPT)) - 1)
    channels_last = inputs["pixel_values"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(channels_last, pixels)

    with torch.no_grad():
        written = model.generate(**inputs)[:, len(asked) :].numpy()
        whole = torch.cat([inputs["input_ids"], torch.tensor(ours[:, :-1])], dim=1)
        logits = model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits.numpy()
    theirs = np.full_like(ours, tokenizer.eos_id)
    theirs[:, : written.shape[1]] = written
    np.testing.assert_array_equal(theirs, ours)
    texts = processor.batch_decode(written, skip_special_tokens=True)
    assert [text.strip() for text in texts] == captioner.decode_texts(ours, lengths)
    if name == "plain":
        with torch.no_grad():
            written = model.generate(**inputs, num_beams=3)[:, len(asked) :].numpy()
        beams, _ = captioner.generate_tokens(pixels, method="beam", beams=3)
        np.testing.assert_array_equal(written, beams[:, : written.shape[1]])

    @jax.jit
    def teacher_forced(params, pixels, tokens):
        c = captioner.structure.merge(params)
        return c.logits(c.prefill(c.project(c.encode(pixels))), tokens[:, None])[:, 0]

    wanted = np.asarray(teacher_forced(captioner.params, pixels, ours))
    logits, v = logits[:, len(asked) - 1 :], config.lm.vocab_size
    tolerance = 1e-4 * np.abs(wanted).max()
    assert image_id == v == tokenizer.vocab_size and logits.shape[-1] == v + 1
    assert np.abs(logits[..., :v] - wanted).max() <= tolerance
    np.testing.assert_allclose(logits[..., v], wanted.mean(-1), atol=tolerance)
    assert (logits[..., v] < logits[..., :v].max(-1)).all()


@pytest.mark.parametrize("free", [0, 2])
def test_a_tied_decoder(workspace, tmp_path, free):
    """With rows that its tokenizer has no ids for, `<image>` takes the first and none is added."""
    parts = read_parts(configure(workspace, tmp_path / "run").model)
    config, n = parts.blueprint.config, parts.tokenizer.vocab_size
    lm = dataclasses.replace(config.lm, vocab_size=n + free, tie_word_embeddings=True)
    config = dataclasses.replace(config, lm=lm)
    model = Captioner(config, rngs=nnx.Rngs(0))
    pixels, params = parts.preprocessor.to_hf(), split(model)[1]
    out = tmp_path / "hf"
    assert llava.save_llava(config, params, parts.tokenizer, pixels, out, max_tokens=9) == n
    theirs = load_llava(out)
    rows = theirs.lm_head.weight.detach().numpy()
    table = np.asarray(model.lm.embed_tokens.embedding[...])
    np.testing.assert_array_equal(rows[: n + free], table)
    assert len(rows) == n + max(free, 1)
    assert theirs.get_input_embeddings().weight is theirs.lm_head.weight
    assert theirs.generation_config.suppress_tokens == [n]
    assert theirs.generation_config.renormalize_logits is True
    assert theirs.generation_config.max_new_tokens == 9


def test_the_tokenizer_of_mistral_7b(real_data, tmp_path):
    """From a `tokenizer.model` alone: `<image>` is 32000, and nothing else changes."""
    ours = load_tokenizer(real_data / "tokenizers/mistral_v1")
    text, image_id = llava_processor.tokenizer_with_image(ours)
    assert image_id == 32_000
    (tmp_path / "tokenizer.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(llava_processor.tokenizer_config(ours))
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs.backend_tokenizer, Tokenizer)
    for caption in ["a dog on a sofa.", "Zwei Männer; 2 Hüte!", "A 'quoted' sign 犬 🙂"]:
        assert llava_processor.text_input(ours, caption) == f"<image> {caption}"
        assert theirs(f"<image><image> {caption}").input_ids == [
            ours.bos_id, image_id, image_id, *ours.encode(caption)[:-1],
        ]  # fmt: skip
        assert theirs.decode(ours.encode(caption), skip_special_tokens=True).strip() == caption
    assert load_tokenizer(tmp_path).bos_id == ours.bos_id


def test_the_decoder_alone(workspace, runs, tmp_path):
    """A pooled captioner's decoder, as a plain Mistral that a new run may start from."""
    out = tmp_path / "lm"
    argv = [f"--checkpoint={runs / 'pooled'}", f"--out={out}", "--format=mistral", "--step=1"]
    assert export.main(argv) == 0
    theirs, report = transformers.MistralForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    captioner = har_jax.load_captioner(runs / "pooled")
    again = split(load_mistral(out))[1]
    for name, value in part(captioner.params, "lm").items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    head = np.asarray(captioner.params["lm.lm_head.kernel"]).T
    np.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), head)
    assert load_tokenizer(out).fingerprint == captioner.tokenizer.fingerprint
    tokens = transformers.AutoTokenizer.from_pretrained(out)("a red circle").input_ids
    assert tokens[1:] == captioner.tokenizer.encode("a red circle")[:-1]


# ---------------------------------------------------------------------------------- mistakes


def mistake(capsys, *argv):
    """Runs a command that must fail: exit code 2 and one line, which is returned."""
    assert export.main([str(arg) for arg in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_a_pooled_captioner(runs, tmp_path, capsys):
    said = mistake(capsys, f"--checkpoint={runs / 'pooled'}", f"--out={tmp_path / 'hf'}")
    assert "model.projector='pooled' cannot be exported as LLaVA: it makes 10 prefix" in said
    assert not any(tmp_path.iterdir())


def test_a_projector_of_another_width(workspace, tmp_path):
    config = read_parts(configure(workspace, tmp_path, projector_hidden=48).model).blueprint.config
    with pytest.raises(UserError, match=r"model.projector_hidden=48 .* 32 here"):
        llava.check_expressible(config)
    llava.check_expressible(dataclasses.replace(config, projector_hidden=32))


def test_what_is_named_must_be_there(runs, tmp_path, capsys):
    plain, out = f"--checkpoint={runs / 'plain'}", f"--out={tmp_path / 'hf'}"
    assert "no run directory" in mistake(capsys, f"--checkpoint={tmp_path / 'no'}", out)
    assert "no checkpoint of step 7; it has 1" in mistake(capsys, plain, out, "--step=7")
    assert "(did you mean 'best'?)" in mistake(capsys, plain, out, "--step=bst")
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        assert "exists already" in mistake(capsys, plain, f"--out={taken}")
    assert "is not a directory" in mistake(capsys, plain, f"--out={tmp_path / 'file' / 'hf'}")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_nothing_half_written_remains(runs, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(llava, "tokenizer_config", full)  # comes after the weights
    assert export.main([f"--checkpoint={runs / 'plain'}", f"--out={tmp_path / 'hf'}"]) == 2
    assert capsys.readouterr().err.startswith("error: No space left on device")
    assert not any(tmp_path.iterdir())
