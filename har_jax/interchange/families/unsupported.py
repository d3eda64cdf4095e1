"""Models that people have and that are not supported, and what in them is another computation."""

from __future__ import annotations

_NAFLEX = (
    "a SigLIP 2 of the NaFlex kind, whose images have any shape and number of patches; a SigLIP 2 "
    "of one size, such as google/siglip2-base-patch16-224, is of type 'siglip'"
)
OTHER_ENCODERS = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "dinov3_vit": "its positions are rotary",
    "vit": "its pooler is a layer of its own",
    "clip_text_model": "it reads texts",
    "siglip_text_model": "it reads texts",
}

_OWN_EYES = "it has an encoder of its own: give the language model alone"
_EXPERTS = "its perceptrons are mixtures of experts"
_AROUND = "its norms stand elsewhere in a layer"
_BESIDE = "attention and perceptron read the same input"
OTHER_DECODERS = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "it scales its embeddings, and "
                    "its norms multiply by 1 + weight"),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss",
                     "granitemoe", "phimoe", "llama4_text"), _EXPERTS),
    **dict.fromkeys(("llava", "mllama", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm",
                     "llama4", "mistral3", "paligemma"), _OWN_EYES),
    **dict.fromkeys(("phi", "gpt_neox", "gptj", "falcon", "cohere", "cohere2"), _BESIDE),
    **dict.fromkeys(("olmo2", "olmo3", "glm4"), _AROUND),
    **dict.fromkeys(("mamba", "mamba2", "jamba", "rwkv", "recurrent_gemma"), "it has layers that "
                    "are no attention"),
    "phi3": "one kernel makes gate and up, and its positions are of another kind",
    "glm": "its rotary positions turn pairs of neighbours",
    "opt": "its positions begin at 2, and its norms may stand elsewhere",
    "bloom": "it has no positions but biases of attention",
    "mpt": "it has no positions but biases of attention",
    "t5": "it is an encoder and a decoder",
    "bart": "it is an encoder and a decoder",
    "bert": "it is an encoder of texts",
    "granite": "it scales embeddings, attention and logits",
    "ministral": "some of its layers have windows and some have none",
}  # fmt: skip
