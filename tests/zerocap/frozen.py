"""ZeroCap's two frozen models by transformers, and the hyper-parameters of the published code."""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, DynamicCache, GPT2LMHeadModel

Cache = list[tuple[Tensor, Tensor]]  # keys and values [K,heads,T,width] of every layer
ImageLike = Image.Image | bytes
Path = str | os.PathLike[str]
CLIP_LENGTH = 77


@dataclasses.dataclass(frozen=True)
class Settings:
    """The hyper-parameters; the defaults are those of the authors' `run.py`.

    Attributes:
      joint_norm: keys and values of a layer share the norm by which their gradients are divided.
      repeat_probability: multiplies the probabilities of the last `repeat_window` tokens.
      repeat_prompt: whether the prompt's tokens count among those last ones.
      forbidden: ids of tokens to be avoided (the authors have a file of 917).
      normalise_jointly: divide the probabilities by their sum over all beams.
      clean_up: close the gaps before punctuation in decoded text, as transformers 4.11 did, which
        the authors require.
    """

    prompt: str = "Image of a"
    steps: int = 15
    beams: int = 5
    iterations: int = 5
    candidates: int = 512
    temperature: float = 0.01
    clip_scale: float = 1.0
    fluency_scale: float = 0.2
    step_size: float = 0.3
    norm_exponent: float = 0.9
    norm_epsilon: float = 1e-15
    joint_norm: bool = False
    fusion: float = 0.99
    repetition_penalty: float = 1.0
    repeat_window: int = 4
    repeat_probability: float = 1.0
    repeat_prompt: bool = True
    end_token: str = "."
    end_factor: float = 1.01
    end_from: int = 1
    start_factor: float = 1.6
    forbidden: tuple[int, ...] = ()
    forbidden_factor: float = 20.0
    normalise_jointly: bool = True
    clean_up: bool = True


ARTICLE = Settings(
    norm_exponent=1.0,
    joint_norm=True,
    end_factor=1.04,
    end_from=3,
    repeat_probability=0.5,
    repeat_prompt=False,
    normalise_jointly=False,
)


class Frozen:
    """GPT-2 and CLIP from Hugging Face directories, in evaluation mode, on the CPU."""

    def __init__(
        self,
        gpt2_dir: Path,
        clip_dir: Path,
        settings: Settings | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.settings, self.dtype = settings or Settings(), dtype
        self.tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
        self.lm = GPT2LMHeadModel.from_pretrained(gpt2_dir).to(dtype).eval().requires_grad_(False)
        self.clip_tokenizer = AutoTokenizer.from_pretrained(clip_dir)
        self.clip = CLIPModel.from_pretrained(clip_dir).to(dtype).eval().requires_grad_(False)
        self.processor = CLIPImageProcessor.from_pretrained(clip_dir)
        self.end = self.tokenizer.encode(self.settings.end_token)[0]
        # transformers 5 renamed this argument on its way.
        arguments = inspect.signature(GPT2LMHeadModel.forward).parameters
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"

    # ------------------------------------------------------------------------------------ CLIP

    @torch.no_grad()
    def image_feature(
        self, images: Sequence[ImageLike], weights: Sequence[float] | None = None
    ) -> Tensor:
        """[1,E]: the weighted sum of the images' raw embeddings, made a unit vector."""
        weights = [1.0] * len(images) if weights is None else weights
        total = torch.zeros(1, self.clip.config.projection_dim, dtype=self.dtype)
        for image, weight in zip(images, weights, strict=True):
            if not isinstance(image, Image.Image):
                image = Image.open(io.BytesIO(image))
            pixels = self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
            total = total + weight * _pooled(self.clip.get_image_features(pixels.to(self.dtype)))
        return _unit(total)

    def texts_to_clip_tokens(self, texts: Sequence[str]) -> Tensor:
        """[N,L]. What follows the end of text does not count, so rows need not be 77 long."""
        return self.clip_tokenizer(
            list(texts), padding=True, truncation=True, max_length=CLIP_LENGTH, return_tensors="pt"
        )["input_ids"]

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """[N,E]: unit rows."""
        return _unit(_pooled(self.clip.get_text_features(self.texts_to_clip_tokens(texts))))

    # ------------------------------------------------------------------------------------ GPT-2

    def context(self, prompt: str | None = None) -> Tensor:
        """[1,T]: the end-of-text token, then the prompt."""
        prompt = self.settings.prompt if prompt is None else prompt
        return torch.tensor([[self.tokenizer.bos_token_id, *self.tokenizer.encode(prompt)]])

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text with special tokens spelled out."""
        # `clean_up_tokenization_spaces` would be ignored for a BPE by transformers 5.
        text = self.tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)
        return _close_gaps(text) if self.settings.clean_up else text

    def read(self, tokens_kt: Tensor) -> tuple[Tensor, Cache]:
        """Logits [K,V] after the last token, and the cache of all."""
        cache = DynamicCache()
        out = self.lm(tokens_kt, **{self._cache_argument: cache}, use_cache=True)
        return out.logits[:, -1], [(layer.keys, layer.values) for layer in cache.layers]

    def logits_after(self, last_k1: Tensor, cache: Cache) -> Tensor:
        """[K,V]: logits after one more token; differentiable in the cache."""
        past = DynamicCache(cache)
        out = self.lm(last_k1, **{self._cache_argument: past}, use_cache=True)
        return out.logits[:, -1]

    def plain(self, ids: Sequence[int]) -> str:
        """Text without special tokens and with all its gaps, as today's transformers decode."""
        return self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def _close_gaps(text: str) -> str:
    for gap in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(gap, gap.strip())
    return text


def _pooled(out) -> Tensor:
    return out.pooler_output if hasattr(out, "pooler_output") else out


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
