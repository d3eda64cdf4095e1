"""The configuration of a run: frozen dataclasses; each number says what it may be where it stands.

`Config.from_dict` and `Config.changed` refuse unknown keys, wrong types and numbers out of their
range; `check` refuses contradictions between settings. All are `UserError`s, found before any
device is touched. `config_file.load` reads what `--config=` names.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from har_jax.errors import UserError
from har_jax.settings import (
    Count,
    CountOrZero,
    Decay,
    Layer,
    MeshSize,
    NotNegative,
    Path,
    Positive,
    Range,
    Seed,
    Share,
    accepts,
    build,
    place,
)

VisionTokens = Literal["patches", "all", "after_first"]
WeightsForDecoding = Literal["auto", "gathered", "in_place"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    dir: Path = ""  # a prepared dataset (python -m har_jax.prepare)
    train_split: str = "train"  # what is learned from
    val_split: str = "val"  # what is validated on, and chooses the best step; "" for none
    fraction: Share = 1.0  # of the training images: a fixed subset, inside every larger one
    shots: CountOrZero = 0  # the same as a number of images; 0: all
    subset_seed: Seed = 0  # draws other subsets
    captions_per_image: Count = 5  # R of MLE: more are drawn from, fewer are padded and masked
    # T: tokens of a caption, EOS included; 0: what the training captions need
    max_tokens: Annotated[int, Range(at_least=2, at_most=1 << 20, also=(0,))] = 32
    # What rewards and metrics count of captions; "": what the dataset was prepared with. A function
    # is run only where it is named here.
    words: str = ""
    cache_images: bool = True  # keep decoded pixels in memory where they fit
    features: Path = ""  # a feature cache (python -m har_jax.prepare features); "": encode images


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: CountOrZero = 0  # r of adapters; 0: none
    alpha: Positive = 32.0  # an adapter's product counts alpha / rank
    targets: str = "attn.(q|k|v|qkv|o)"  # regex: the ends of the names of the decoder's linears


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerSettings:
    """How a captioner computes, whatever its weights: `models.captioner.CaptionerConfig` is this
    and the shapes of its parts, so that each of these settings is written here alone."""

    # patch: an MLP of each patch; pooled: one of the image's vector, which makes prefix_tokens.
    projector: Literal["patch", "pooled"] = "patch"
    prefix_tokens: Count = 10  # that a pooled projector makes
    projector_hidden: CountOrZero = 0  # width of its hidden layer; 0: the decoder's width
    vision_layer: Layer = -2  # of the encoder, whose tokens are read; -1: the last
    # Which tokens of that layer: those of patches, all, or all but the first (class tokens and
    # registers stand before the patches, where an encoder has them).
    vision_tokens: VisionTokens = "patches"
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes
    scan_layers: bool = False  # the decoder's layers in one lax.scan: compiled once, not L times
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations
    # Of the encoder and of prefixes: our blocks, cuDNN's kernel (NVIDIA GPUs, bfloat16), or splash
    # (TPUs): for long ones.
    attention: Literal["blocks", "cudnn", "splash"] = "blocks"
    decode_weights: WeightsForDecoding = "auto"  # brought together over fsdp, or left there


@accepts(clip="encoder")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(CaptionerSettings):
    encoder: Path = ""  # HF directory of the frozen encoder
    lm: Path = ""  # HF directory of the decoder, its tokenizer beside it
    prompt: str = ""  # after the image, before the caption
    train_lm: bool = True  # False: only the projector learns
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # of trained parameters
    # Of frozen parameters; int8 and nf4 are of the decoder's kernels, the rest is bfloat16 then.
    frozen_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    lora: LoraConfig = LoraConfig()  # with a rank, the decoder itself is frozen

    @property
    def trains_base(self) -> bool:
        """Whether the decoder's own weights learn, and not only the projector or adapters."""
        return self.train_lm and not self.lora.rank

    @property
    def quantises(self) -> bool:
        """Whether the decoder's kernels are kept in 8 or 4 bits."""
        return self.frozen_dtype in ("int8", "nf4")

    @property
    def dense_frozen_dtype(self) -> str:
        """Of what is frozen and not quantised."""
        return "bfloat16" if self.quantises else self.frozen_dtype


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    # muon: of the kernels of hidden layers; all the rest learns and decays as with adamw.
    name: Literal["adamw", "muon", "adafactor", "sgd"] = "adamw"
    lr: NotNegative = 1e-4  # the highest, reached after the warm-up
    projector_lr_factor: NotNegative = 1.0  # a projector starts from nothing; decoders do not
    # How it falls from there, to the last step of config.steps.
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: CountOrZero = 0  # in which it rises from nothing; not more than the run's
    final_lr_factor: NotNegative = 0.0  # what is left of it at the last step
    weight_decay: NotNegative = 0.0  # of matrices; norms and biases have none
    b1: Decay = 0.9  # of the first moment, or of momentum
    b2: Decay = 0.999  # of the second
    clip_norm: NotNegative = 1.0  # of the global gradient; 0: off


@dataclasses.dataclass(frozen=True)
class ScstConfig:
    samples: Count = 5  # K: captions that are drawn for an image
    baseline: Literal["greedy", "leave_one_out", "both"] = "greedy"  # both: the mean of them
    objective: str = "policy_gradient"  # or package.module:function
    temperature: Positive = 1.0  # of the samples, in the rollout and in the update
    reward: str = "cider_d"  # a weighted sum, "cider_d + 0.5*bleu": see har_jax/rewards/mix.py
    reward_clip: Path = ""  # HF directory of the CLIP of the part `clip_score`, or `pac_score`
    reward_timeout: Positive = 600.0  # seconds that the reward of a batch may take
    eos: bool = True  # CIDEr-D counts EOS as a word
    doctor: Literal["on", "warn", "off"] = "on"  # before the first step: har_jax/sessions/doctor.py


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: MeshSize = 1  # devices that hold whole copies and share a batch; -1: those left
    fsdp: MeshSize = -1  # devices that share a batch and the parameters; -1: those left
    tensor: MeshSize = 1  # devices that share each matrix product; -1: those left
    auto: bool = False  # sizes by what each device would hold, instead of those above


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: CountOrZero = 0  # steps between validations; 0: only at the end
    images: CountOrZero = 0  # of the validation split; 0: all
    batch_size: Count = 64  # images captioned at a time, rounded up to what the mesh divides
    clip_score: Path = ""  # HF directory of the independent CLIP that scores captions


GuardAction = Literal["off", "warn", "stop", "rollback"]


@dataclasses.dataclass(frozen=True)
class GuardsConfig:
    """What SCST watches while it runs, and what it does then: see har_jax/training/guards.py."""

    bad_end: GuardAction = "warn"  # captions that break off, as in "a man with a"
    bad_end_rise: Positive = 0.15  # of their rate, above that at the start
    repetition: GuardAction = "warn"  # bigrams that stood in the caption before
    repetition_rise: Positive = 0.15  # of their rate, above that at the start
    length: GuardAction = "warn"  # tokens of a caption
    length_drift: Positive = 0.5  # share; beyond both the references and the start
    entropy: GuardAction = "warn"  # of the policy
    entropy_floor: Positive = 0.03  # nats per token
    reward: GuardAction = "warn"  # of the samples
    reward_drop: Share = 0.5  # relative to the start
    kl: GuardAction = "off"  # to the MLE policy, whose trained parameters are kept in memory for it
    kl_limit: Positive = 2.0  # nats per token
    clip: GuardAction = "off"  # CIDEr up while CLIPScore falls, of the validation captions
    clip_drop: Positive = 0.02  # of CLIPScore, below that at the start
    window: Count = 3  # logs that each figure is averaged over
    patience: Count = 2  # averages beyond the limit, one after the other, before anything is done
    rollback_lr_factor: Share = 0.5  # of the learning rate, after each roll-back
    max_rollbacks: CountOrZero = 3  # the next one stops the run


@dataclasses.dataclass(frozen=True)
class Config:
    stage: Literal["mle", "scst"] = "mle"  # maximum likelihood, or self-critical training
    seed: Seed = 0  # of the projector, of batches and of samples
    steps: Count = 1000  # updates; a longer run of it gets a longer schedule
    batch_size: Count = 32  # images, over all devices
    microbatches: Count = 1  # parts of a batch whose gradients are made one after the other
    # What to start from: a run, a LLaVA or PEFT directory, or a projector's. SCST needs one.
    init_from: Path = ""
    log_every: Count = 10  # steps
    checkpoint_every: Count = 500  # steps
    # Who is told of the run beside its own log: names of tensorboard, wandb, mlflow and trackio, or
    # package.module:function of one's own, with commas; "" for none.
    trackers: str = "tensorboard"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    scst: ScstConfig = ScstConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    guards: GuardsConfig = GuardsConfig()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as `config.json` holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """From nested plain values, such as those of `config.json`; missing ones are defaults.

        Raises:
          UserError: a key is unknown, a value not of its field's type or out of its range.
        """
        return build(cls, values, "config")

    def changed(self, **settings: Any) -> Config:
        """This configuration with other settings: `changed(steps=10, **{"optim.lr": 1e-4})`.

        Raises:
          UserError: as `from_dict`.
        """
        values = self.to_dict()
        for key, value in settings.items():
            section, leaf = place(values, key)
            section[leaf] = value
        return Config.from_dict(values)


RESUMABLE = (
    *("steps", "log_every", "checkpoint_every", "trackers", "mesh", "eval", "guards"),
    *("data.cache_images", "scst.doctor", "scst.reward_timeout"),
)
"""Settings and sections that a resumed run may change: how long and how observed, not what is
learned."""


def may_change(key: str) -> bool:
    """Whether a resumed run may change a setting, such as `eval.every`."""
    return any(key == free or key.startswith(f"{free}.") for free in RESUMABLE)


def check(config: Config, *, alone: bool = False) -> None:
    """Contradictions that need neither a device nor a file to be seen.

    Args:
      alone: SCST need not name the run that it refines: it is only compiled.

    Raises:
      UserError: there is one.
    """
    optim, scst = config.optim, config.scst
    if config.batch_size % config.microbatches:
        raise UserError(
            f"config.microbatches={config.microbatches} does not divide "
            f"config.batch_size={config.batch_size}; set "
            f"{_largest_divisor(config.batch_size, config)}"
        )
    if optim.warmup_steps > config.steps:
        raise UserError(
            f"config.optim.warmup_steps={optim.warmup_steps} is longer than the run "
            f"(config.steps={config.steps}): the learning rate would never be reached; lower it"
        )
    if config.model.attention == "cudnn" and config.model.dtype != "bfloat16":
        raise UserError(
            f"config.model.attention=cudnn computes in bfloat16, but config.model.dtype is "
            f"{config.model.dtype!r}; set --config.model.dtype=bfloat16"
        )
    if config.model.quantises and config.model.trains_base:
        raise UserError(
            f"config.model.frozen_dtype={config.model.frozen_dtype} is of a frozen decoder, but "
            "this one learns; set --config.model.lora.rank=16 or --config.model.train_lm=false"
        )
    try:
        re.compile(config.model.lora.targets)
    except re.error as error:
        raise UserError(
            f"config.model.lora.targets={config.model.lora.targets!r} is no regular expression "
            f"({error}); give one such as 'attn.(q|k|v|o)' or '(attn.(q|v)|mlp.down)'"
        ) from None
    needed = {"data.dir": config.data.dir}
    if not config.init_from:  # which may say what these are
        needed["model.lm"] = config.model.lm
        if not config.data.features:  # imported features have no encoder
            needed["model.encoder"] = config.model.encoder
    for name, value in needed.items():
        if not value:
            raise UserError(f"config.{name} is not set; give a directory: --config.{name}=DIR")
    if config.stage == "scst" and not config.init_from and not alone:
        raise UserError(
            "config.init_from is not set: SCST refines an MLE run, or another captioner; give its "
            "directory: --config.init_from=runs/mle"
        )
    if config.stage == "scst" and scst.baseline != "greedy" and scst.samples < 2:
        needed = f"needs config.scst.samples >= 2, got {scst.samples}"
        raise UserError(f"config.scst.baseline={scst.baseline!r} {needed}")


def check_devices(config: Config, n_devices: int) -> None:
    """The mesh fits the devices, and the batch is divided by the axes that split it.

    Raises:
      UserError: one of the two is not so.
    """
    from har_jax.sharding import resolve_mesh_shape

    mesh = config.mesh
    data, fsdp, _ = resolve_mesh_shape((mesh.data, mesh.fsdp, mesh.tensor), n_devices)
    rows = data * fsdp
    if config.batch_size % rows:
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be divided over {rows} devices (mesh "
            f"data={data} x fsdp={fsdp}); use a multiple of {rows}, such as "
            f"{math.ceil(config.batch_size / rows) * rows}"
        )
    rows *= config.microbatches
    if config.batch_size % rows:
        raise UserError(
            f"config.batch_size={config.batch_size} cannot be divided into "
            f"config.microbatches={config.microbatches} over {data * fsdp} devices; use a multiple "
            f"of {rows}, or {_largest_divisor(config.batch_size // (data * fsdp), config)}"
        )


def _largest_divisor(rows: int, config: Config) -> str:
    """`microbatches=4`: the most parts, up to what is asked for, that the rows of a device make."""
    fits = max(n for n in range(1, config.microbatches + 1) if rows % n == 0)
    return f"config.microbatches={fits}"
