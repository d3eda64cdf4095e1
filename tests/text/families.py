"""Small tokenizers, laid out as the directories of other families are: trained here on a few
sentences, with the pipelines, special tokens and configurations that the families have."""

import json
import pathlib

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from har_jax.text.tokenizer import train_gpt2_tokenizer

TEXTS = [
    "A large red ball next to a small blue box on the sand.",
    "there is a striped green star above a yellow ring in the night sky",
    "Two shapes in the snow, 1234 of them.",
    "Ein großer roter Hund läuft über die Straße.",
    "赤いボールが砂の上にあります。",
    "كرة حمراء كبيرة على الرمل",
] * 4
ODD = [
    "A dog's ball isn't here, it's THERE: 12345 of 67!",
    "naïve café, e\u0301 — 日本語 \U0001f600\U0001f468\u200d\U0001f469",
    "tabs\tand\nnew lines  and   spaces",
    "Zwei Männer; 2 Hüte!",
    "犬と猫がベッドで寝ている。",
    "رجل يركب حصانا",
    "\x00 \x7f ~",
    "",
]
"""Without what spells a special token: transformers takes that for the token, and we for text."""

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = f"{_LETTERS}|\\p{{N}}{_REST}"
LLAMA = f"{_LETTERS}|\\p{{N}}{{1,3}}{_REST}"


def write(directory: pathlib.Path, tokenizer: Tokenizer | None, **files: object) -> pathlib.Path:
    """A directory of a tokenizer and of JSON files, `name=contents`."""
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(directory / "tokenizer.json"))
    for name, contents in files.items():
        (directory / f"{name}.json").write_text(json.dumps(contents, ensure_ascii=False))
    return directory


def byte_level(pattern: str, special: list[str], vocab: int = 400, **model: bool) -> Tokenizer:
    """A byte-level BPE whose special tokens come last."""
    tokenizer = Tokenizer(models.BPE(**model))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def qwen2(directory: pathlib.Path) -> pathlib.Path:
    """No BOS, two ends that two files name, a chat template, and tokens that are no special ones;
    more rows than tokens are the model's affair."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(QWEN, special)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    text, _, turn = (tokenizer.token_to_id(token) for token in special)
    return write(
        directory,
        tokenizer,
        tokenizer_config={
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "chat_template": "{% for message in messages %}{{ message }}{% endfor %}",
            "clean_up_tokenization_spaces": False,
        },
        config={"model_type": "qwen2", "bos_token_id": text, "eos_token_id": turn},
        generation_config={"bos_token_id": text, "eos_token_id": [turn, text]},
    )


def llama3(directory: pathlib.Path) -> pathlib.Path:
    """BOS by the post-processor, and three ends, of which the tokenizer names the last."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    tokenizer = byte_level(LLAMA, special, ignore_merges=True)
    ids = [tokenizer.token_to_id(token) for token in special]
    bos = special[0]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[0])]
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    return write(
        directory,
        tokenizer,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": "<|eot_id|>",
            "clean_up_tokenization_spaces": False,
        },
        config={"model_type": "llama", "bos_token_id": ids[0], "eos_token_id": ids[1:]},
        generation_config={"bos_token_id": ids[0], "eos_token_id": ids[1:]},
    )


def gpt2(directory: pathlib.Path) -> pathlib.Path:
    """One token that begins and ends."""
    train_gpt2_tokenizer(TEXTS, 400, directory)
    return directory


def llama2(directory: pathlib.Path) -> pathlib.Path:
    """SentencePiece's BPE as transformers converts it: spaces are U+2581, and what the vocabulary
    lacks is written in bytes."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = _sentencepiece()
    learner.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += sorted(learnt["vocab"], key=learnt["vocab"].get)
    merges = [tuple(pair) for pair in learnt["merges"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    how = dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, **how))
    tokenizer.normalizer = _sentencepiece()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_llamas_ends(directory, tokenizer)


def unigram(directory: pathlib.Path) -> pathlib.Path:
    """SentencePiece's Unigram, with the same special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _with_llamas_ends(directory, tokenizer)


def _sentencepiece() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _with_llamas_ends(directory: pathlib.Path, tokenizer: Tokenizer) -> pathlib.Path:
    special = [AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return write(
        directory,
        tokenizer,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
        },
        config={"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2},
    )


FAMILIES = {
    "qwen2": qwen2,
    "llama3": llama3,
    "gpt2": gpt2,
    "llama2": llama2,
    "unigram": unigram,
}
