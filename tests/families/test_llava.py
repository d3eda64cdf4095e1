"""LLaVA directories that transformers wrote, of drawn decoders and towers: `load_captioner(DIR)`
writes what its `generate` writes, token for token; and what is exported again is as it was."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file

import har_jax
from har_jax.errors import UserError
from har_jax.interchange import llava, llava_processor
from har_jax.text.tokenizer import load_tokenizer, train_tokenizer
from tests.families.drawn import FAMILIES, draw_config, roughened
from tests.helpers import long
from tests.models.encoders import draw_dinov2, draw_siglip

TEXTS = ["a red star above a blue moon", "two green hearts beside a cross", "a small yellow ring"]
MAX_TOKENS = 9
PROCESSORS = {  # as the published directories of each kind of tower say
    "clip": {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "do_center_crop": False},
    "dinov2": {"image_processor_type": "BitImageProcessor", "do_center_crop": True},
}


def draw_tower(kind: str, rng: np.random.Generator):
    if kind == "siglip":
        # Without its head, transformers 5.24 gives LLaVA no hidden states of it.
        return transformers.SiglipVisionConfig(**draw_siglip(rng, head=True)["vision_config"])
    if kind == "dinov2":
        drawn = draw_dinov2(rng, registers=bool(rng.integers(0, 2)))
        del drawn["reads"]
        with_registers = "num_register_tokens" in drawn
        make = transformers.Dinov2WithRegistersConfig if with_registers else None
        return (make or transformers.Dinov2Config)(**drawn)
    heads, patch = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    return transformers.CLIPVisionConfig(
        hidden_size=heads * int(rng.integers(3, 7)),
        intermediate_size=int(rng.integers(5, 20)),
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads,
        patch_size=patch,
        image_size=patch * int(rng.integers(1, 4)) + int(rng.integers(0, patch)),
    )


def write_llava(directory, family: str, kind: str, seed: int):
    """A random LLaVA, saved by transformers; whether rows of the vocabulary have no token, and
    which layer and tokens of the tower are read, are drawn too."""
    rng = np.random.default_rng([seed, 7])
    tower = draw_tower(kind, rng)
    tokenizer = train_tokenizer(TEXTS, 270, directory)
    image_id = tokenizer.vocab_size
    text = draw_config(
        family,
        seed,
        vocab_size=image_id + 1 + int(rng.integers(0, 3)),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        **({"tie_word_embeddings": False} if family == "gpt2" else {}),
    )
    n_layers = tower.num_hidden_layers
    # Of one patch, and no class token before it, the default leaves nothing.
    alone = kind == "siglip" and tower.image_size < 2 * tower.patch_size
    strategies = ["full"] if alone else ["default", "full"]
    config = transformers.LlavaConfig(
        text_config=text.to_dict(),
        vision_config=tower.to_dict(),
        image_token_index=image_id,
        # transformers 5.24 takes layer 0 for none at all; -n - 1 is the same one.
        vision_feature_layer=int(rng.choice([*range(-n_layers - 1, 0), *range(1, n_layers + 1)])),
        vision_feature_select_strategy=str(rng.choice(strategies)),
    )
    torch.manual_seed(seed)
    model = roughened(transformers.LlavaForConditionalGeneration(config))
    for linear in (
        model.model.multi_modal_projector.linear_1,
        model.model.multi_modal_projector.linear_2,
    ):
        linear.weight.data.mul_(5.0)  # so that captions depend on the image
    model.generation_config.eos_token_id = tokenizer.eos_id
    model.generation_config.pad_token_id = tokenizer.eos_id
    model.generation_config.suppress_tokens = list(range(image_id, text.vocab_size))
    model.generation_config.max_new_tokens = MAX_TOKENS
    model.save_pretrained(directory)
    grown, _ = llava_processor.tokenizer_with_image(load_tokenizer(directory))
    (directory / "tokenizer.json").write_text(grown)
    side = tower.image_size
    pixels = {
        "size": {"height": side, "width": side},
        "crop_size": {"height": side, "width": side},
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.3],
        **PROCESSORS[kind],
    }
    if kind != "siglip":
        pixels["size"] = {"shortest_edge": side}
    (directory / "preprocessor_config.json").write_text(json.dumps(pixels))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(llava_processor.tokenizer_config(tokenizer))
    )
    n_extra = {"siglip": 0, "clip": 1}.get(kind, 1 + getattr(tower, "num_register_tokens", 0))
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": n_extra,
    }
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return model


def images(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (23, 31, 3), np.uint8)) for _ in range(n)]


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
