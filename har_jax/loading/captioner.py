"""Captioners from a run, or from Hugging Face directories: built in their shards, ready to write.

    captioner = har_jax.load_captioner("runs/scst", mesh=mesh)
    texts = captioner.generate(["photo.jpg"], method="beam")

What a captioner can do is in `loaded.LoadedCaptioner`; docs/library.md shows it at work.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jax.sharding import Mesh

from har_jax.config import LoraConfig
from har_jax.loading import sources
from har_jax.loading.loaded import LoadedCaptioner
from har_jax.loading.sources import PathLike
from har_jax.models import lora
from har_jax.settings import tell_renamed
from har_jax.sharding import RULES, Rules, make_mesh


def load_captioner(
    source: PathLike | None = None,
    *,
    encoder: PathLike | None = None,
    lm: PathLike | None = None,
    projector: PathLike | None = None,
    adapter: PathLike | None = None,
    prompt: str | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    step: str | int = "best",
    dtype: Any = None,
    merge: bool = False,
    clip: PathLike | None = None,
) -> LoadedCaptioner:
    """A captioner, its parameters sharded over a mesh.

        load_captioner("runs/scst")  # a run of har_jax.train
        load_captioner("exported")  # what har_jax.export wrote: a LLaVA or a PEFT directory
        load_captioner(encoder="clip-vit-large-patch14", lm="Mistral-7B-v0.1", projector="runs/mle")

    Args:
      source: a run, a LLaVA directory of the families in docs/models.md, or a PEFT directory.
      encoder, lm: HF directories (or hub names) of encoder and decoder; with a run or a PEFT
        directory, where its base weights are now. A run's must hash as they did in training.
      projector: a run that trained only its projector, or a directory with `projector.safetensors`.
      adapter: LoRA adapters as PEFT saves them.
      prompt: the text between image and caption, where a directory does not say or says another.
      mesh: with the axes `data`, `fsdp` and `tensor`; of all devices by default.
      rules: from logical axes to mesh axes; `har_jax.sharding.RULES` by default.
      step: of a run: `"best"` (by validation CIDEr), `"latest"` or a number.
      dtype: `"float32"` or `"bfloat16"`, of all parameters and the computation. By default a run's
        own, and for directories bfloat16 if the decoder is stored so, else float32.
      merge: add LoRA's adapters to the kernels: two products less for each when decoding.
      clip: what `encoder` was called once.

    Raises:
      UserError: something is missing, does not belong together, or was changed since training.
    """
    mesh = mesh or make_mesh()
    place = sources.Placement.of(mesh, rules, dtype, dense=merge)
    if clip is not None:
        tell_renamed("load_captioner(clip=)", "encoder=")
        encoder = encoder if encoder is not None else clip
    given = dict(encoder=encoder, lm=lm, projector=projector, adapter=adapter, prompt=prompt)
    given = {name: value for name, value in given.items() if value is not None}
    loaded = sources.load(sources.read_source(source, given, step), place)
    parts, params = loaded.parts, loaded.params
    blueprint, model = parts.blueprint, loaded.config.model
    if merge and model.lora.rank:
        params = lora.merged(params, model.lora.alpha / model.lora.rank)
        model = dataclasses.replace(model, lora=LoraConfig())
        blueprint = blueprint.changed(model)
    config = dataclasses.replace(loaded.config, model=model)
    read = (parts.tokenizer, parts.preprocessor)
    blueprint = blueprint.placed_on(mesh)
    name = os.fspath(source if source is not None else given["projector"])
    return LoadedCaptioner(blueprint, params, *read, mesh, config, loaded.run, loaded.step, name)
