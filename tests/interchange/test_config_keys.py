"""Every key of a `config.json` either means here what it means in transformers, or is refused by
name; what transformers 4 and 5 write loads."""

import copy
import functools
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from har_jax.errors import UserError
from har_jax.foreign import Keys
from har_jax.interchange import llava
from har_jax.interchange.families.clip import CLIP_FAMILY, VISION_FAMILY, read_clip
from har_jax.interchange.families.dinov2 import DINOV2_FAMILY
from har_jax.interchange.families.gpt2 import GPT2_FAMILY
from har_jax.interchange.families.mistral import MISTRAL
from har_jax.interchange.families.siglip_towers import SIGLIP_FAMILY
from har_jax.models.functional import split
from tests.interchange.test_mistral_dir import assert_close

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOKENS = np.random.default_rng(0).integers(3, 29, (2, 13))
BASE = {
    "mistral": dict(
        vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, sliding_window=6,
        max_position_embeddings=128,
    ),
    "gpt2": dict(vocab_size=31, n_positions=32, n_embd=16, n_layer=2, n_head=4),
    "clip": dict(
        vision_config=dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            image_size=8, patch_size=4,
        ),
        text_config=dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=31, max_position_embeddings=16, eos_token_id=30, bos_token_id=0,
        ),
        projection_dim=6,
    ),
    "siglip": dict(
        vision_config=dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            image_size=8, patch_size=4,
        ),
        text_config=dict(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=31, max_position_embeddings=16,
        ),
    ),
    "dinov2": dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        mlp_ratio=2,
    ),
}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
COMMON = {
    "torch_dtype": "float32", "transformers_version": "4.31.0", "architectures": ["X"],
    "_name_or_path": "a/b", "use_cache": False, "output_hidden_states": True, "temperature": 0.5,
    "top_p": 0.1, "do_sample": True, "max_length": 3, "pad_token_id": 3, "num_beams": 7,
    "id2label": {"0": "a", "1": "b"}, "initializer_range": 0.5, "task_specific_params": {"a": 1},
    "quantization_config": {"quant_method": "awq", "bits": 4}, "auto_map": {"AutoModel": "x.Y"},
    "pruned_heads": {"0": [1]}, "chunk_size_feed_forward": 2, "is_encoder_decoder": False,
    "attention_bias": True, "no_such_key": 3, "use_bidirectional_attention": True,
    "logits_soft_cap": 5.0, "repetition_penalty": 2.0, "bad_words_ids": [[4]],
}  # fmt: skip
CHANGES = [
    ("mistral", key, value)
    for key, value in [
        *COMMON.items(),
        ("rope_scaling", {"type": "yarn", **YARN}),
        ("rope_scaling", {"rope_type": "yarn", **YARN}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"type": "default"}),
        ("rope_scaling", {"factor": 8.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 100.0, **YARN}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 50.0}),
        ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 50.0}}),
        ("rope_theta", 100.0),
        ("partial_rotary_factor", 0.5),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 0.1),
        ("sliding_window", 3),
        ("sliding_window", None),
        ("sliding_window", [3, None]),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", ["sliding_attention", "sliding_attention"]),
        ("tie_word_embeddings", True),
        ("max_position_embeddings", 64),
        ("attention_dropout", 0.5),
        ("head_dim", None),
        ("num_key_value_heads", 4),
        ("is_decoder", True),
        ("mlp_bias", True),
        ("attn_logit_softcapping", 2.0),
    ]
]
CHANGES += [
    ("gpt2", key, value)
    for key, value in [
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 0.1),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("n_inner", 24),
        ("n_ctx", 32),
        ("attn_pdrop", 0.7),
        ("summary_type", "mean"),
        ("tie_word_embeddings", False),
        ("quantization_config", {"quant_method": "gptq"}),
        ("no_such_key", "x"),
    ]
]
CHANGES += [
    ("clip", key, value)
    for key, value in [
        ("vision_config.hidden_act", "gelu"),
        ("vision_config.layer_norm_eps", 0.1),
        ("vision_config.attention_dropout", 0.5),
        ("vision_config.model_type", "siglip_vision_model"),
        ("vision_config.vocab_size", 3),
        ("vision_config.no_such_key", 1),
        ("text_config.hidden_act", "relu"),
        ("text_config.layer_norm_eps", 0.1),
        ("text_config.eos_token_id", 2),
        ("text_config.projection_dim", 99),
        ("logit_scale_init_value", 1.0),
        ("initializer_factor", 2.0),
        ("text_config.quantization_config", {"bits": 4}),
    ]
]
CHANGES += [
    ("siglip", key, value)
    for key, value in [
        ("vision_config.hidden_act", "gelu"),
        ("vision_config.layer_norm_eps", 0.1),
        ("vision_config.attention_dropout", 0.5),
        ("vision_config.model_type", "clip_vision_model"),
        ("vision_config.no_such_key", 1),
        ("vision_config.vision_use_head", True),
        ("text_config.hidden_act", "relu"),
        ("text_config.layer_norm_eps", 0.1),
        ("text_config.eos_token_id", 2),
        ("text_config.bos_token_id", 3),
        ("text_config.projection_size", None),
        ("initializer_factor", 2.0),
        ("vision_config.num_patches", 4),
        ("text_config.quantization_config", {"bits": 4}),
    ]
]
CHANGES += [
    ("dinov2", key, value)
    for key, value in [
        ("hidden_act", "gelu_new"),
        ("layer_norm_eps", 0.1),
        ("mlp_ratio", 3),
        ("use_swiglu_ffn", True),
        ("use_mask_token", False),
        ("layerscale_value", 0.3),
        ("drop_path_rate", 0.4),
        ("hidden_dropout_prob", 0.5),
        ("attention_probs_dropout_prob", 0.5),
        ("qkv_bias", False),
        ("apply_layernorm", False),
        ("reshape_hidden_states", False),
        ("out_features", ["stage1"]),
        ("image_size", 12),
        ("no_such_key", 1),
        ("quantization_config", {"bits": 4}),
    ]
]
CLASSES = {
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, MISTRAL),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, GPT2_FAMILY),
    "clip": (transformers.CLIPConfig, transformers.CLIPModel, CLIP_FAMILY),
    "siglip": (transformers.SiglipConfig, transformers.SiglipModel, SIGLIP_FAMILY),
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, DINOV2_FAMILY),
}


def changed(family: str, key: str, value) -> dict:
    """What transformers writes of the base, with one key changed."""
    config = json.loads(CLASSES[family][0](**copy.deepcopy(BASE[family])).to_json_string())
    *parts, last = key.split(".")
    section = config
    for part in parts:
        section = section[part]
    if key == "rope_scaling" or key == "rope_theta":
        config.pop("rope_parameters")
    section[last] = value
    return config


@pytest.mark.parametrize(("family", "key", "value"), CHANGES, ids=str)
def test_a_key_means_what_it_means_in_transformers_or_is_refused_by_name(
    family, key, value, tmp_path
):
    _, model, ours = CLASSES[family]
    config = changed(family, key, value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        ours.read_config(tmp_path)
    except UserError as error:
        assert key.rpartition(".")[2] in str(error) and len(str(error)) < 1000
        assert not key.startswith(("_", "torch", "use_cache", "temper", "attention_drop", "n_ctx"))
        return
    torch.manual_seed(0)
    theirs = model(CLASSES[family][0].from_dict(copy.deepcopy(config))).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    structure, params = split(ours.load(tmp_path))
    side = config.get("image_size", 8)
    pixels = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    tokens = np.array(TOKENS)
    tokens[:, -1] = 30

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params):
        net = structure.merge(params)
        if family == "dinov2":
            return net.pooled(pixels)
        if family in ("clip", "siglip"):
            return net(pixels, tokens)
        return net.logits(net.prefill(net.embed(tokens))[0])

    with torch.no_grad():
        channels_first = torch.tensor(pixels).permute(0, 3, 1, 2)
        if family == "dinov2":
            wanted = theirs(channels_first).pooler_output
        elif family in ("clip", "siglip"):
            wanted = theirs(
                pixel_values=channels_first, input_ids=torch.tensor(tokens)
            ).logits_per_image
        else:
            wanted = theirs(torch.tensor(tokens)).logits
    assert_close(run(params), wanted, key)


@pytest.mark.parametrize("family", CLASSES)
def test_what_transformers_writes_loads_with_all_its_keys(family, tmp_path):
    config = CLASSES[family][0](**copy.deepcopy(BASE[family]))
    config.save_pretrained(tmp_path)
    CLASSES[family][2].read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    CLASSES[family][2].read_config(tmp_path)  # defaults too


HUB = {
    "mistralai/Mistral-7B-v0.1": """{"architectures": ["MistralForCausalLM"], "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}""",
    "gpt2": """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257}""",
}


def test_configs_of_the_hub_load(tmp_path):
    for text, family in zip(HUB.values(), (MISTRAL, GPT2_FAMILY), strict=True):
        (tmp_path / "config.json").write_text(text)
        family.read_config(tmp_path)
    old = {  # of transformers 4.0 to 4.20, in each part of a CLIP
        "add_cross_attention": False, "bad_words_ids": None, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None, "decoder_start_token_id": None, "dropout": 0.0,
        "diversity_penalty": 0.0, "do_sample": False, "early_stopping": False,
        "length_penalty": 1.0,
        "encoder_no_repeat_ngram_size": 0, "finetuning_task": None, "forced_bos_token_id": None,
        "id2label": {"0": "LABEL_0"}, "is_decoder": False, "is_encoder_decoder": False,
        "label2id": {"LABEL_0": 0}, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
        "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_scores": False,
        "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
        "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
        "sep_token_id": None, "temperature": 1.0, "tie_encoder_decoder": False, "top_k": 50,
        "tie_word_embeddings": True, "tokenizer_class": None, "top_p": 1.0, "torch_dtype": None,
        "torchscript": False, "transformers_version": "4.16.0.dev0", "typical_p": 1.0,
        "use_bfloat16": False, "exponential_decay_length_penalty": None, "_name_or_path": "",
    }  # fmt: skip
    parts = {
        f"{name}_config": {**old, "model_type": f"clip_{name}_model"} for name in ("text", "vision")
    }
    clip = {
        **parts, "model_type": "clip", "projection_dim": 512, "logit_scale_init_value": 2.6592,
        "text_config_dict": None, "vision_config_dict": None, "initializer_factor": 1.0,
        "architectures": ["CLIPModel"], "torch_dtype": "float32", "transformers_version": None,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(clip))
    assert CLIP_FAMILY.read_config(tmp_path).projection_dim == 512
    assert VISION_FAMILY.read_config(tmp_path)[1] == 512


LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
    "image_token_index": 32000, "model_type": "llava", "pad_token_id": 32001,
    "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16",
    "text_config": {"model_type": "mistral", "vocab_size": 32064, "torch_dtype": "float16"},
    "transformers_version": "4.36.0.dev0", "vision_feature_layer": -2, "vocab_size": 32064,
    "vision_feature_select_strategy": "default", "image_seq_length": 576,
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "projection_dim": 768,
        "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14, "vocab_size": 32000,
    },
}  # fmt: skip


def test_llava_of_the_hub_loads(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAVA))
    config, _ = llava.read_llava_config(tmp_path)
    assert (config.vision.hidden_size, config.lm.vocab_size, config.vision_layer) == (
        1024, 32064, -2
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("vision_feature_layer", [-2], ""),
        ("vision_feature_layer", [-2, -5], "vision_feature_layer=[-2, -5] reads several layers"),
        ("vision_feature_layer", 30, "feature layer 30 of a tower of 24"),
        ("vision_feature_select_strategy", "full", ""),
        ("vision_feature_select_strategy", "first", "vision_feature_select_strategy is 'first'"),
        ("tie_word_embeddings", True, ""),
        ("text_config.rope_scaling", {"type": "yarn", **YARN}, "text_config: rope_scaling: type="),
        ("quantization_config", {"bits": 4}, "its weights are quantized"),
        ("image_token_index", "x", "image_token_index is 'x': needs"),
        ("vision_config.model_type", "siglip_vision_model", ""),
        ("vision_config.model_type", "vit", "vision_config is of type 'vit'"),
        ("vision_config", None, "vision_config"),
        ("mm_hidden_size", 1024, "mm_hidden_size=1024"),
    ],
)
def test_keys_of_llava(key, value, said, tmp_path):
    config = copy.deepcopy(LLAVA)
    section = config
    *parts, last = key.split(".")
    for part in parts:
        section = section[part]
    section[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not said:
        assert llava.read_llava_config(tmp_path)[0].vision_layer == -2
        return
    with pytest.raises(UserError) as error:
        llava.read_llava_config(tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_theta", []), ("hidden_size", -4), ("hidden_size", 10**12), ("vocab_size", True),
        ("num_hidden_layers", 10**6), ("rms_norm_eps", "small"), ("head_dim", 0),
        ("sliding_window", 0), ("rope_theta", float("inf")), ("num_attention_heads", 2.5),
        ("eos_token_id", ["</s>"]), ("hidden_act", 3),
    ],
)  # fmt: skip
def test_numbers_out_of_their_range_are_named(key, value):
    with pytest.raises(UserError, match=rf"config: {key} is .*needs"):
        MISTRAL.read({"model_type": "mistral", key: value})


def test_many_unknown_keys_are_a_few_and_a_count():
    keys = Keys(used={})
    with pytest.raises(UserError, match="and 497 more") as error:
        keys.read({f"key\n{i}" * 50: i for i in range(500)}, "x")
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


def test_sizes_that_no_model_has_are_refused_before_anything_is_loaded():
    config = MISTRAL.write(MISTRAL.read({"model_type": "mistral"}, "")) | {"head_dim": 7}
    with pytest.raises(UserError, match=r"head_dim 7\), which is odd"):
        MISTRAL.read(config)
    vision = {"model_type": "clip_vision_model", "num_channels": 4}
    with pytest.raises(UserError, match="num_channels is 4, and images are read as RGB"):
        read_clip({"model_type": "clip", "vision_config": vision})
