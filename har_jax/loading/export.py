"""A trained run as directories that transformers and PEFT load without this package."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from har_jax.checkpoint import resolve_step
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, peft
from har_jax.interchange.families.registry import family_of
from har_jax.interchange.llava import check_expressible, image_id, save_llava
from har_jax.interchange.llava_processor import drop_added_token, generation_config, text_input
from har_jax.interchange.publish import CARD
from har_jax.loading.captioner import load_captioner
from har_jax.loading.identity import check_base
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.loading.parts import read_run_parts
from har_jax.models.functional import part
from har_jax.training.run_dir import read_run

Format = Literal["llava", "decoder", "peft"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


class Exported(NamedTuple):
    """What was written; `text` is the text input of a LLaVA's processor, "" of other forms."""

    form: Format
    step: int
    text: str = ""


def export(
    run: str,
    out: str,
    *,
    form: Format = "llava",
    step: str = "best",
    card: Callable[[Exported], str] | None = None,
) -> str:
    """Writes a run's captioner into a new directory; returns what was written, in words.

    The directory appears when it is complete.

    Args:
      form: "llava", the whole captioner; "decoder", its decoder; "peft", LoRA's adapters and the
        projector. LoRA is merged into the decoder but by the last.
      step: of the run: "best", "latest" or a number.
      card: makes the `README.md` of it.

    Raises:
      UserError: the run cannot be written so, or `out` is taken; before any weights are loaded.
    """
    _check(run, out, form, step)
    captioner = load_captioner(run, step=step, merge=form != "peft")
    write = {"llava": _llava, "decoder": _decoder, "peft": _adapters}[form]
    with hf_dir.staging(out) as made:
        told = write(captioner, made)
        if card is not None and jax.process_index() == 0:
            prompt = captioner.config.model.prompt
            text = text_input(captioner.tokenizer, prompt) if form == "llava" else ""
            text = card(Exported(form, captioner.step, text))
            (made / CARD).write_text(text, encoding="utf-8", errors="replace")
    return f"step {captioner.step} as {told}"


def _check(run: str, out: str, form: Format, step: str) -> None:
    directory = pathlib.Path(out)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"--out={out} exists already; remove it or choose another name")
    above = next(p for p in directory.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out={out} cannot be made: {above} is not a directory to write in")
    config, info = read_run(run)
    parts = read_run_parts(config)
    if form == "peft" and not config.model.lora.rank:
        raise UserError(
            f"--checkpoint={run} was trained without LoRA (config.model.lora.rank=0), "
            "so it has no adapters; use --format=llava or --format=decoder"
        )
    if form == "llava":
        check_expressible(parts.blueprint.config)
        text_input(parts.tokenizer, config.model.prompt)
    check_base(info, parts.identity, run)
    resolve_step(run, step)


def _llava(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    assert captioner.preprocessor is not None, "refused before: a captioner without an encoder"
    prompt = captioner.config.model.prompt
    number = save_llava(
        captioner.blueprint.config,
        captioner.params,
        captioner.tokenizer,
        captioner.preprocessor.to_hf(),
        out,
        max_tokens=captioner.config.data.max_tokens,
        prompt=prompt,
    )
    text = text_input(captioner.tokenizer, prompt)
    return f"LlavaForConditionalGeneration; <image> is id {number}; its text input is {text!r}"


def _decoder(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    config, base = captioner.blueprint.config, captioner.blueprint.decoder_dir
    family = family_of(config.lm)
    family.save(config.lm, part(captioner.params, "lm"), out)
    contents = generation_config(config, captioner.config.data.max_tokens)
    hf_dir.write_json(out / "generation_config.json", contents)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    if hf_dir.is_llava(base):
        drop_added_token(out, image_id(base))
    return str(family.write(config.lm)["architectures"][0])


def _adapters(captioner: LoadedCaptioner, out: pathlib.Path) -> str:
    model, lm = captioner.config.model, captioner.blueprint.config.lm

    def lasting(name: str) -> str:  # hub names as they are, directories from anywhere
        return os.path.abspath(name) if os.path.isdir(name) else name

    decoder = part(captioner.params, "lm")
    peft.save_adapters(decoder, model.lora, out, base=lasting(model.lm), lm=lm)
    settings = {
        "encoder": lasting(model.encoder),
        "max_tokens": captioner.config.data.max_tokens,
        **{key: getattr(model, key) for key in peft.PROJECTOR_SETTINGS},
    }
    peft.save_projector(part(captioner.params, "projector"), out, settings)
    return f"LoRA r={model.lora.rank} for PEFT upon {model.lm}, and the projector"
