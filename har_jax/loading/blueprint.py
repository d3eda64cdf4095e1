"""A captioner before its weights: all that configuration and `config.json`s tell.

A blueprint is drawn without opening a file of weights, a dataset or a device. What compiles ahead,
plans memory, or fills parameters from files starts from one.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from har_jax.config import CaptionerSettings, Config, ModelConfig
from har_jax.decoding.weights import resolve
from har_jax.errors import UserError
from har_jax.interchange import hf_dir, llava
from har_jax.interchange.families.registry import read_decoder, read_encoder
from har_jax.models import lora
from har_jax.models.attention import KERNELS
from har_jax.models.captioner import Captioner, CaptionerConfig
from har_jax.models.decoders.protocol import DecoderConfig
from har_jax.models.encoders.protocol import EncoderConfig
from har_jax.models.functional import Structure, structure_of
from har_jax.sharding import RULES, LogicalAxes, Rules
from har_jax.text.tokenizer import CaptionTokenizer

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """See the module's docstring.

    Attributes:
      model: the settings that it was drawn from.
      config: shapes of the parts, and how images and text reach the decoder.
      encoder_dir, decoder_dir: where the weights are: directories, found once and never again, so
        that a hub's name cannot move on between two looks at it. No encoder: features are imported.
    """

    model: ModelConfig
    config: CaptionerConfig
    encoder_dir: Path | None
    decoder_dir: Path

    def with_text(self, tokenizer: CaptionTokenizer, image_id: int | None = None) -> Blueprint:
        """With the ids that the tokenizer gives to the ends of a text and to the prompt, and those
        that it gives to no word.

        Args:
          image_id: of `<image>` in a LLaVA, which is no word though the tokenizer may count it.

        Raises:
          UserError: there are more than the decoder has rows.
        """
        rows, known = self.config.lm.vocab_size, tokenizer.vocab_size
        known -= image_id == known - 1
        if known > rows:
            raise UserError(
                f"{self.model.lm}: its tokenizer has {known} ids but the model only {rows}; the "
                "two do not belong together"
            )
        wordless = [*tokenizer.wordless, (known, rows)]
        if image_id is not None and image_id < known:
            wordless.append((image_id, image_id + 1))
        prompt = tokenizer.encode(self.model.prompt)[:-1] if self.model.prompt else []
        ids = dict(
            bos_id=tokenizer.bos_id,
            eos_ids=tokenizer.eos_ids,
            prompt_ids=tuple(prompt),
            wordless=tuple((first, stop) for first, stop in wordless if first < stop <= rows),
        )
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **ids))

    def changed(self, model: ModelConfig) -> Blueprint:
        """With other settings of the captioner over the same parts."""
        config = dataclasses.replace(self.config, **_settings(model))
        return dataclasses.replace(self, model=model, config=config)

    def placed_on(self, mesh: Mesh) -> Blueprint:
        """With `decode_weights` decided for the mesh's devices, and an attention that computes on
        them: a captioner is read elsewhere than where it was trained."""
        dtype, model = jnp.dtype(self.model.dtype), self.model
        how = resolve(model.decode_weights, self.shapes, self.logical_axes, dtype, mesh)
        here = KERNELS.get(model.attention) in (None, mesh.devices.flat[0].platform)
        attention = model.attention if here else "blocks"
        return self.changed(dataclasses.replace(model, decode_weights=how, attention=attention))

    # ---------------------------------------------------------------------- parameters

    def build(self, rngs: nnx.Rngs) -> Captioner:
        """A captioner with random parameters and, if asked for, adapters on its decoder.

        Call it where nothing is allocated: abstractly, or inside `jax.jit`.
        """
        model, config = self.model, self.config
        dtype = jnp.dtype(model.param_dtype)

        frozen_dtype = jnp.dtype(model.dense_frozen_dtype)

        def adapt(block: nnx.Module, rngs: nnx.Rngs) -> None:  # before its layers are stacked
            if model.quantises:
                for linear in lora.linears(block).values():
                    linear.quantise(model.frozen_dtype)
            if model.lora.rank and config.scan_layers:
                lora.attach(block, model.lora, rngs=rngs, dtype=dtype, prefix="layers")

        captioner = Captioner(
            config,
            rngs=rngs,
            dtype=dtype,
            vision_dtype=frozen_dtype,
            lm_dtype=dtype if model.trains_base else frozen_dtype,
            adapt=adapt,
        )
        if model.lora.rank:
            assert isinstance(captioner.lm, nnx.Module)
            lora.attach(captioner.lm, model.lora, rngs=rngs, dtype=dtype)
            lora.check_targets(captioner.lm, model.lora)
        return captioner

    @functools.cached_property
    def structure(self) -> Structure[Captioner]:
        """The captioner without its arrays."""
        return structure_of(lambda: self.build(nnx.Rngs(0)))

    @functools.cached_property
    def shapes(self) -> Shapes:
        """Of all parameters, by their flat names, in the dtypes that a run gives them."""
        return self.structure.shapes

    @functools.cached_property
    def logical_axes(self) -> dict[str, LogicalAxes]:
        return self.structure.logical_axes

    def shardings(self, mesh: Mesh, rules: Rules = RULES) -> dict[str, NamedSharding]:
        """Where each parameter lives on a mesh."""
        return self.structure.shardings(mesh, rules)

    def is_trained(self, name: str) -> bool:
        """Whether a parameter learns, has optimizer state and goes into checkpoints."""
        if name.startswith("vision."):
            return False
        if name.startswith("lm."):
            return lora.is_factor(name) if self.model.lora.rank else self.model.train_lm
        return True

    @functools.cached_property
    def trained(self) -> list[str]:
        """The names of the parameters that learn."""
        return [name for name in self.shapes if self.is_trained(name)]

    def abstract_trained(self, mesh: Mesh, rules: Rules = RULES) -> Shapes:
        """Shapes, dtypes and shardings of what learns: what a checkpoint is restored into."""
        shapes, shardings = self.shapes, self.shardings(mesh, rules)
        return {name: shapes[name].update(sharding=shardings[name]) for name in self.trained}

    # ---------------------------------------------------------------------- batches

    def batch(self, config: Config) -> Shapes:
        """Of the global batches of a run, as `data.pipeline.TrainBatches` makes them for it.

        Raises:
          UserError: `data.max_tokens` is 0, so that only the captions could tell T.
        """
        b, data = config.batch_size, config.data
        if not data.max_tokens:
            raise UserError(
                "config.data.max_tokens is 0 (as the captions need it), which no file but the "
                "dataset can tell; give a number"
            )
        captions = (b, data.captions_per_image)
        vision = self.config.vision
        if vision is None or data.features:
            seen = {"features": (b, *self.config.features_shape)}
        else:
            seen = {"image": (b, vision.image_size, vision.image_size, vision.num_channels)}
        return {
            **{name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in seen.items()},
            "image_id": jax.ShapeDtypeStruct((b,), jnp.int32),
            "tokens": jax.ShapeDtypeStruct((*captions, data.max_tokens), jnp.int32),
            "lengths": jax.ShapeDtypeStruct(captions, jnp.int32),
        }


def draw(model: ModelConfig, features: tuple[int, int] | None = None) -> Blueprint:
    """The blueprint of what `model.encoder` and `model.lm` name, from their `config.json`s alone.
    Either may be a LLaVA's directory, of which one network is meant then.

    Args:
      features: (S, Dv) of what the projector reads, where a cache stands in for the tower.

    Raises:
      UserError: a directory that is not there, or of another kind of network.
    """
    decoder_dir = hf_dir.resolve(model.lm)
    encoder_dir = hf_dir.resolve(model.encoder) if model.encoder else None
    if model.encoder == model.lm:  # one directory, of one moment
        encoder_dir = decoder_dir
    vision = encoder_in(encoder_dir) if encoder_dir is not None and features is None else None
    if vision is not None:
        check_vision(vision, model)
    config = CaptionerConfig(vision=vision, lm=decoder_in(decoder_dir), features=features)
    return of_parts(model, config, encoder_dir, decoder_dir)


def encoder_in(directory: Path) -> EncoderConfig:
    """The configuration of an encoder's directory, or of the tower in a LLaVA's."""
    if not hf_dir.is_llava(directory):
        return read_encoder(directory)
    return llava.check_expressible(llava.read_llava_config(directory)[0])


def decoder_in(directory: Path) -> DecoderConfig:
    """The configuration of a decoder's directory, or of the decoder in a LLaVA's."""
    if not hf_dir.is_llava(directory):
        return read_decoder(directory)
    return llava.read_llava_config(directory)[0].lm


def check_vision(vision: EncoderConfig, model: ModelConfig) -> None:
    """`UserError` where an encoder does not have what a projector is to read."""
    if model.projector == "patch":
        vision.check_layer(model.vision_layer)
    elif not vision.pools:
        raise UserError(
            f"config.model.projector=pooled reads one vector for an image, and this {vision.what} "
            "has none (no pooling head); set --config.model.projector=patch"
        )


def of_parts(
    model: ModelConfig, config: CaptionerConfig, encoder_dir: Path | None, decoder_dir: Path
) -> Blueprint:
    """A blueprint of parts whose configurations were read already.

    The ends of a text are those of the decoder's `config.json`, until a tokenizer says better.
    """
    eos = getattr(config.lm, "eos_token_id", None)
    eos_ids = tuple(eos) if isinstance(eos, list | tuple) else (2 if eos is None else eos,)
    ids = {"bos_id": getattr(config.lm, "bos_token_id", None), "eos_ids": eos_ids or (2,)}
    config = dataclasses.replace(config, **_settings(model), **ids)
    return Blueprint(model, config, encoder_dir, decoder_dir)


def _settings(model: ModelConfig) -> dict[str, object]:
    """The part of a model section that says how a captioner computes."""
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(CaptionerSettings)}
