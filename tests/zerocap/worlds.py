"""Small random GPT-2s and CLIPs as Hugging Face directories, to try ZeroCap on.

    world = make_world(tmp_path, seed=3)
    world.gpt2, world.clip      # directories
    draw_images(4, seed=1)      # PIL images; png_bytes(image) encodes one

The weights are random but large, so that the language model prefers some tokens and the CLIP tells
texts and images apart. No probability is so small that its logarithm is lost.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel

from har_jax.data.images import Preprocessor
from har_jax.text.tokenizer import train_clip_tokenizer

END_OF_TEXT = "<|endoftext|>"
SIDE = 32
CONTEXT = 77

_COLOURS = ("red", "blue", "green", "yellow", "purple", "white", "black", "orange", "grey", "pink")
_SIZES = ("small", "large", "tiny", "huge", "old", "shiny", "round", "wooden", "broken", "bright")
_THINGS = (
    "dog", "cat", "ball", "car", "house", "bench", "horse", "train", "kite", "apple", "bottle",
    "lamp", "guitar", "bicycle", "elephant", "umbrella", "sandwich", "surfboard", "clock", "vase",
    "giraffe", "zebra", "laptop", "keyboard", "skateboard", "pizza", "donut", "carrot", "snowboard",
    "airplane", "fire hydrant", "parking meter", "refrigerator", "toothbrush", "scissors", "woman",
    "fisherman", "child", "violin", "helicopter",
)  # fmt: skip
_RELATIONS = ("next to", "on top of", "behind", "in front of", "under", "near", "leaning against")
_PLACES = (
    "street", "beach", "kitchen", "garden", "market", "field", "river", "mountains", "living room",
    "harbour", "bathroom", "forest", "museum", "airport", "classroom", "swimming pool",
)  # fmt: skip
_OPENINGS = ("Image of", "A photo of", "There is", "Somebody's picture of", "This shows")
_ENDS = (".", ".", ".", "!", ", isn't it?", ", at night.")


@dataclasses.dataclass(frozen=True)
class World:
    """The directories of a GPT-2 and of a CLIP."""

    gpt2: Path
    clip: Path


def make_world(path: str | os.PathLike[str], seed: int = 0, **changes: int) -> World:
    """Writes both directories below `path`.

    Args:
      changes: arguments of `make_gpt2`, such as `layers` or `vocab_size`.
    """
    world = World(Path(path) / "gpt2", Path(path) / "clip")
    make_gpt2(world.gpt2, seed, **changes)
    make_clip(world.clip, seed)
    return world


def captions(n: int = 300, seed: int = 0) -> list[str]:
    """English captions by a small grammar."""
    rng = np.random.default_rng(seed)

    def noun() -> str:
        size = f"{rng.choice(_SIZES)} " if rng.random() < 0.6 else ""
        return f"a {size}{rng.choice(_COLOURS)} {rng.choice(_THINGS)}"

    def caption() -> str:
        where = f" in the {rng.choice(_PLACES)}" if rng.random() < 0.5 else ""
        opening, relation, end = (rng.choice(words) for words in (_OPENINGS, _RELATIONS, _ENDS))
        return f"{opening} {noun()} {relation} {noun()}{where}{end}"

    return [caption() for _ in range(n)]


def draw_images(n: int, seed: int = 0) -> list[Image.Image]:
    """Coloured shapes on coloured grounds, of various sizes."""
    rng = np.random.default_rng(seed)

    def colour() -> tuple[int, ...]:
        return tuple(int(value) for value in rng.integers(0, 256, 3))

    drawn = []
    for _ in range(n):
        width, height = (int(side) for side in rng.integers(SIDE, 3 * SIDE, 2))
        image = Image.new("RGB", (width, height), colour())
        pen = ImageDraw.Draw(image)
        for _ in range(4):
            left, right = sorted(int(x) for x in rng.integers(0, width, 2))
            top, bottom = sorted(int(y) for y in rng.integers(0, height, 2))
            shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
            shape((left, top, right, bottom), fill=colour())
        drawn.append(image)
    return drawn


def png_bytes(image: Image.Image) -> bytes:
    """An image as a file's contents."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_gpt2(
    path: Path,
    seed: int = 0,
    *,
    vocab_size: int = 600,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    positions: int = 96,
) -> None:
    """A random GPT-2 with a byte-level BPE of at most `vocab_size` ids."""
    tokenizer = _write_gpt2_tokenizer(path, captions(), vocab_size)
    end = tokenizer.token_to_id(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=end + 1,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    _stir(model, 0.2, generator)
    with torch.no_grad():
        embedding, shift = model.transformer.wte.weight, model.transformer.ln_f.bias
        embedding.mul_(2.0)
        shift.mul_(2.0)
        # Along the last norm's bias, a token's logit grows in every context: words are more likely
        # than their parts and these than bytes that are no letters, and sentences do end.
        raised = torch.tensor([_preference(tokenizer.id_to_token(i)) for i in range(end + 1)])
        embedding += raised[:, None] * shift / shift.square().sum()
    model.save_pretrained(path)


def _preference(piece: str) -> float:
    if piece == ".":
        return 5.5
    if piece.startswith("Ġ") and len(piece) > 3:
        return 3.0
    return 0.0 if piece.isascii() and piece.isalpha() else -1.5


def make_clip(path: Path, seed: int = 0) -> None:
    """A random CLIP: both towers, tokenizer and preprocessor."""
    tokenizer = train_clip_tokenizer(captions(), 700, path, CONTEXT)
    shared = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = CLIPConfig(
        text_config=dict(
            **shared,
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        ),
        vision_config=dict(**shared, image_size=SIDE, patch_size=8),
        projection_dim=24,
    )
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        model = CLIPModel(config).eval()
    _stir(model, 0.2, generator)
    with torch.no_grad():
        # All texts share a direction, or the temperature would leave one candidate only.
        model.text_model.final_layer_norm.weight.mul_(0.25)
        model.text_model.final_layer_norm.bias.mul_(4.0)
    model.save_pretrained(path)
    _write_json(path / "preprocessor_config.json", Preprocessor.for_size(SIDE).to_hf())


def _stir(model: torch.nn.Module, scale: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def _write_gpt2_tokenizer(path: Path, texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Lays the ids out as OpenAI's: bytes ("!" is 0), merges, end of text last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = dict.fromkeys([*alphabet, *(left + right for left, right in merges), END_OF_TEXT])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(os.fspath(path / "tokenizer.json"))
    _write_json(path / "vocab.json", vocab)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    _write_json(path / "tokenizer_config.json", settings)
    return tokenizer


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
