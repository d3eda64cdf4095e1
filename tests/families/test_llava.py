"""LLaVA directories that transformers wrote, of drawn decoders and towers: `load_captioner(DIR)`
writes what its `generate` writes, token for token; and what is exported again is as it was."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import har_jax
from har_jax.errors import UserError
from har_jax.interchange import llava
from tests.families.drawn import FAMILIES
from tests.families.llavas import MAX_TOKENS, images, write_llava
from tests.helpers import long


def written_by(model, directory, pictures) -> np.ndarray:
    """transformers' greedy captions, filled up with EOS."""
    processor = transformers.AutoProcessor.from_pretrained(directory)
    inputs = processor(images=pictures, text=["<image>"] * len(pictures), return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**inputs, do_sample=False, use_cache=False)
    written = written[:, inputs["input_ids"].shape[1] :].numpy()
    whole = np.full((len(pictures), MAX_TOKENS), model.generation_config.eos_token_id)
    whole[:, : written.shape[1]] = written
    return whole


def cases():
    """Each decoder with CLIP and SigLIP, ten of each; DINOv2 with some. By default each decoder
    with one of them, each encoder with several."""
    pairs = [(family, kind) for family in FAMILIES for kind in ("clip", "siglip")]
    pairs += [(family, "dinov2") for family in ("llama", "qwen3")]
    drawn = [(*pair, i) for i, pair in enumerate(pairs)]
    few = drawn[0:12:4] + drawn[3:12:4] + drawn[12:]  # CLIP and SigLIP by turns
    yield from few
    yield from long(case for case in drawn if case not in few)
    yield from long((*pair, 100 + i) for pair in pairs for i in range(9))


@pytest.mark.parametrize("case", cases(), ids=str)
def test_of_transformers_and_back(case, tmp_path):
    family, kind, seed = case
    directory = tmp_path / "theirs"
    directory.mkdir()
    model = write_llava(directory, family, kind, seed)
    pictures = images(3)
    captioner = har_jax.load_captioner(directory)
    assert captioner.blueprint.config.lm.model_type == family
    ours, _ = captioner.generate_tokens(
        np.stack([captioner.preprocessor(picture) for picture in pictures])
    )
    theirs = written_by(model, directory, pictures)
    np.testing.assert_array_equal(ours, theirs)

    # Written again, it opens in transformers and writes the same.
    again = tmp_path / "again"
    llava.save_llava(
        captioner.blueprint.config,
        captioner.params,
        captioner.tokenizer,
        captioner.preprocessor.to_hf(),
        again,
        max_tokens=MAX_TOKENS,
    )
    reread, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        again, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(written_by(reread.eval(), again, pictures), theirs)
    before, after = (load_file(d / "model.safetensors") for d in (directory, again))
    rows = captioner.blueprint.config.lm.vocab_size
    plain = {name.replace("vision_tower.vision_model.", "vision_tower."): name for name in after}
    for name, tensor in before.items():
        if not name.endswith("mask_token"):
            mine = after[plain[name.replace("vision_tower.vision_model.", "vision_tower.")]]
            size = rows if "embed_tokens" in name or "wte" in name or "lm_head" in name else None
            np.testing.assert_array_equal(mine[:size], tensor[:size], err_msg=name)


def test_a_part_of_another_kind(tmp_path):
    """Its line lists what is supported and says what differs."""
    directory = tmp_path
    write_llava(directory, "llama", "clip", 0)
    config = json.loads((directory / "config.json").read_text())
    for key, model_type, line in (
        ("text_config", "gemma", r"text_config is of type 'gemma' \(it scales its embeddings"),
        ("text_config", "mixtral", r"mixtures of experts\); of a LLaVA are read .*mistral, llama"),
        ("vision_config", "siglip2", r"NaFlex .*clip_vision_model, clip, siglip_vision_model"),
    ):
        changed = {**config, key: {**config[key], "model_type": model_type}}
        (directory / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=line):
            har_jax.load_captioner(directory)
