"""Trains two small towers contrastively and a small language model on captions, all in memory.

Used for the miniature foundation models only. Both go through `fit`: one jitted, donated step and
Muon, which needs about a third of AdamW's steps here (a CLIP on drawn scenes after 200 steps of 128
pairs: validation retrieval R@1 24 % against 4 %), and the demo's minutes are few.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import muon

from har_jax.miniature import patches
from har_jax.miniature.patches import Pictures
from har_jax.models.decoders.gpt2 import GPT2
from har_jax.models.decoders.transformer import Transformer
from har_jax.models.encoders.clip import MAX_LOGIT_SCALE, unit
from har_jax.models.encoders.tower import Block
from har_jax.models.encoders.vit import ViT
from har_jax.models.functional import Params, split
from har_jax.progress import progress
from har_jax.sharding import LogicalAxes
from har_jax.training.optimizer import muon_dimensions
from har_jax.types import AnyArray, Array, Float, Int, UInt

Batch = Mapping[str, Any]
HEAD = "patches"  # the parameter that reads what patches show
_HEAD_AXES = ("embed", "vocab")
FEATURES = -2  # the layer that it reads, as captioners do by default
Encode = Callable[[Sequence[str]], Int[np.ndarray, "N T"]]
LanguageModel = Transformer | GPT2
L = TypeVar("L", Transformer, GPT2)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast: linear warm-up, then half a cosine down to zero."""

    steps: int
    batch_size: int
    matrix_lr: float = 0.02  # Muon's, for the kernels
    lr: float = 1e-3  # Adam's, for embeddings, norms and biases
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.02

    def rate(self, peak: float) -> optax.Schedule:
        warmup = max(1, round(self.warmup * self.steps))
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(self.steps, warmup + 1))


@dataclasses.dataclass(frozen=True)
class Towers:
    """A vision tower and a text tower that are to be trained on pairs.

    Attributes:
      model: has `vision`, a `ViT`; `text`, whose `embed` reads rows of tokens; `logit_scale`.
      shared: from what the model's `vision` pools to the space shared with texts.
      encode: texts to rows of tokens, of one length.
      end_id: what ends a text, where nothing that follows it is read; None where it is.
      save: writes what is kept of the trained model.
    """

    model: Any
    shared: Callable[[Any, Float[Array, "B D"]], Float[Array, "B E"]]
    encode: Encode
    end_id: int | None
    save: Callable[[Any, Path], None]


def optimizer(
    schedule: Schedule, axes: Mapping[str, LogicalAxes]
) -> optax.GradientTransformationExtraArgs:
    dimensions: Any = {name: muon_dimensions(a) for name, a in axes.items()}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        muon(
            schedule.rate(schedule.matrix_lr),
            adam_learning_rate=schedule.rate(schedule.lr),
            weight_decay=schedule.weight_decay,
            muon_weight_dimension_numbers=dimensions,
        ),
    )


def fit(
    axes: Mapping[str, LogicalAxes],
    params: Params,
    loss: Callable[[Params, Batch], Float[Array, ""]],
    batches: Iterable[Batch],
    schedule: Schedule,
    label: str,
    *,
    project: Callable[[Params], Params] = lambda params: params,
) -> Params:
    """Trained parameters. `params` are donated; `project` maps them back to what is allowed."""
    tx = optimizer(schedule, axes)

    def step(params: Any, state: optax.OptState, batch: Batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return project(cast(Params, optax.apply_updates(params, updates))), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    state = tx.init(params)
    with progress(schedule.steps, desc=label, unit="step") as bar:
        for i, batch in zip(range(schedule.steps), batches, strict=False):
            params, state, value = jitted(params, state, batch)
            if i % 10 == 0:  # reading it waits for the device
                bar.set_postfix({"loss": f"{float(value):.3f}"})
            bar.update()
    return params


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def contrastive_loss(logits_bb: Float[Array, "B B"]) -> Float[Array, ""]:
    """Each image must find its caption among the batch's, and each caption its image."""
    labels_b = jnp.arange(logits_bb.shape[0])
    towards_text = jnp.mean(_cross_entropy(logits_bb, labels_b))
    towards_image = jnp.mean(_cross_entropy(logits_bb.T, labels_b))
    return (towards_text + towards_image) / 2


def train_pairs(
    towers: Towers,
    pictures: Pictures,
    tokens: Sequence[Int[np.ndarray, "_ T"]],
    schedule: Schedule,
    looking: Schedule,
    *,
    normalise: Callable[[np.ndarray], np.ndarray],
    seed: int,
    label: str,
    shift: int = 6,
) -> Any:
    """`towers.model`, trained on pairs of an image and one of its captions, drawn anew each time it
    comes round. The loss is CLIP's in every family: SigLIP's own, which asks of each pair by itself
    whether it is one, wants larger batches; so its `logit_bias` stays where it began.

    Where it is known which things an image shows, the patches of the vision tower learn to tell
    them, alone at first (`looking`) and then beside the pairs, by a linear map of the layer that
    captioners read; the map is thrown away.

    Args:
      tokens: for each image the rows of its texts, padded to one length T.
      normalise: makes of some pixels what the vision tower reads.
      shift: images are moved by up to so many pixels each way, their edges repeated. Captions stay
        true, unlike under flips and crops (validation R@1 on scenes 46 % against 43 %).
    """
    structure, params = split(towers.model)
    pixels, vision = pictures.pixels, towers.model.vision.config
    rng = np.random.default_rng(seed)

    def batches(size: int) -> Iterable[tuple[np.ndarray, dict[str, Any]]]:
        for rows in _epochs(len(pixels), min(size, len(pixels)), rng):
            moved_b2 = rng.integers(-shift, shift + 1, (len(rows), 2))
            batch: dict[str, Any] = {"pixels": normalise(shifted(pixels[rows], moved_b2))}
            if pictures.boxes is not None:
                sides = vision.image_size, vision.patch_size
                batch["patches"] = patches.labels(pictures.boxes[rows], moved_b2, *sides)
            yield rows, batch

    def pairs() -> Iterable[Batch]:
        for rows, batch in batches(schedule.batch_size):
            texts = [tokens[i][rng.integers(len(tokens[i]))] for i in rows]
            yield {**batch, "tokens": np.stack(texts)}

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        own = {name: value for name, value in params.items() if name != HEAD}
        return pair_loss(towers, structure.merge(own), params.get(HEAD), batch)

    def clip_scale(params: Params) -> Params:
        scale = jnp.minimum(params["logit_scale"], jnp.log(MAX_LOGIT_SCALE))
        return {**params, "logit_scale": scale}

    axes = structure.logical_axes
    if pictures.boxes is not None:
        shown = (batch for _, batch in batches(looking.batch_size))
        seen = _look(towers.model.vision, shown, looking, f"{label}, patches")
        params |= {name if name == HEAD else f"vision.{name}": x for name, x in seen.items()}
        axes = {**axes, HEAD: _HEAD_AXES}
    trained = fit(axes, params, loss, pairs(), schedule, label, project=clip_scale)
    trained.pop(HEAD, None)
    return structure.merge(trained)


def _look(tower: ViT, shown: Iterable[Batch], schedule: Schedule, label: str) -> Params:
    """The parameters of a vision tower whose patches tell what lies on them, and of the head."""
    structure, params = split(tower)
    params[HEAD] = jnp.zeros((tower.config.hidden_size, sum(patches.CLASSES)))

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        own = {name: value for name, value in params.items() if name != HEAD}
        seen_bnd = structure.merge(own).hidden(batch["pixels"], FEATURES)
        seen_bsd = seen_bnd[:, tower.config.n_extra :]
        return patch_loss(seen_bsd, params[HEAD], batch["patches"])

    axes = {**structure.logical_axes, HEAD: _HEAD_AXES}
    return fit(axes, params, loss, shown, schedule, label)


def pair_loss(
    towers: Towers, model: Any, head_dc: Float[Array, "D C"] | None, batch: Batch
) -> Float[Array, ""]:
    """Of the pairs of a batch; with a head, of their patches too. `model` is `towers`' with other
    parameters."""
    vision: ViT = model.vision
    # Stopping on the way to the last layer at the one that the head reads.
    seen_bnd = vision.hidden(batch["pixels"], FEATURES)
    last_bnd = seen_bnd
    assert not isinstance(vision.layers, Block)  # a miniature's layers are apart
    for block in vision.layers[FEATURES + 1 :]:
        last_bnd, _ = block(last_bnd, None)
    image_be = unit(towers.shared(model, vision.pool(last_bnd)))
    text_be = unit(model.text.embed(batch["tokens"]))
    loss = contrastive_loss(jnp.exp(model.logit_scale[...]) * image_be @ text_be.T)
    if head_dc is None:
        return loss
    seen_bsd = seen_bnd[:, vision.config.n_extra :]
    return loss + patch_loss(seen_bsd, head_dc, batch["patches"])


def patch_loss(
    seen_bsd: Float[Array, "B S D"],
    head_dc: Float[Array, "D C"],
    labels_bs2: Int[AnyArray, "B S 2"],
) -> Float[Array, ""]:
    """Cross-entropy of the shape and of the colour that a linear map reads off each patch."""
    # As long as they come: a layer norm at the start of the next block takes their length away.
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(seen_bsd), axis=-1, keepdims=True) + 1e-6)
    logits = jnp.split(seen_bsd * scale @ head_dc, [patches.CLASSES[0]], axis=-1)
    losses = [_cross_entropy(part, labels_bs2[..., i]) for i, part in enumerate(logits)]
    return jnp.mean(losses[0]) + jnp.mean(losses[1])


def shifted(
    pixels: UInt[np.ndarray, "B H W 3"], moved_b2: Int[np.ndarray, "B 2"]
) -> UInt[np.ndarray, "B H W 3"]:
    """Each image moved down and right by its own numbers of pixels; edges are repeated."""
    b, height, width, _ = pixels.shape
    dy, dx = moved_b2.T[:, :, None]
    y = np.clip(np.arange(height) - dy, 0, height - 1)
    x = np.clip(np.arange(width) - dx, 0, width - 1)
    return pixels[np.arange(b)[:, None, None], y[:, :, None], x[:, None, :]]


def pair_figures(
    towers: Towers, model: Any, pixels: Float[np.ndarray, "N H W 3"], tokens: Int[np.ndarray, "N T"]
) -> dict[str, float]:
    """How well pairs (row i with row i) are told from others.

    `right` and `shuffled` are CLIPScores (2.5 max(cos, 0), Hessel et al. 2021) of each image's own
    caption and of the next image's; `recall_at_1` counts images nearest to their own caption.
    """
    structure, params = split(model)

    def image_of(params: Params, pixels: Array) -> Array:
        model = structure.merge(params)
        return unit(towers.shared(model, model.vision.pooled(pixels)))

    image_ne = jax.jit(image_of)(params, pixels)
    text_ne = jax.jit(lambda p, x: unit(structure.merge(p).text.embed(x)))(params, tokens)
    cos_nn = np.asarray(image_ne @ text_ne.T)
    score_nn = 2.5 * np.maximum(cos_nn, 0)
    return {
        "right": float(np.mean(np.diag(score_nn))),
        "shuffled": float(np.mean(np.diag(np.roll(score_nn, 1, axis=1)))),
        "recall_at_1": float(np.mean(cos_nn.argmax(1) == np.arange(len(cos_nn)))),
        "images": len(cos_nn),
    }


def token_loss(
    model: LanguageModel, tokens_nt: Int[Array, "N T"], lengths_n: Int[Array, " N"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed next-token loss and count of tokens. Rows are BOS, caption, EOS, then anything;
    `lengths` count all three. EOS is predicted too, BOS is not."""
    hidden, _ = model.prefill(model.embed(tokens_nt[:, :-1]))
    loss_nt = _cross_entropy(model.logits(hidden), tokens_nt[:, 1:])
    mask_nt = jnp.arange(1, tokens_nt.shape[1])[None, :] < lengths_n[:, None]
    return jnp.sum(loss_nt * mask_nt), jnp.sum(mask_nt)


def train_lm(
    model: L,
    tokens: Int[np.ndarray, "N T"],
    lengths: Int[np.ndarray, " N"],
    schedule: Schedule,
    *,
    seed: int,
    label: str,
) -> L:
    """Trains on captions alone, as `token_loss` wants them."""
    structure, params = split(model)
    batch_size = min(schedule.batch_size, len(tokens))

    def batches() -> Iterable[Batch]:
        for rows in _epochs(len(tokens), batch_size, np.random.default_rng(seed)):
            yield {"tokens": tokens[rows], "lengths": lengths[rows]}

    def loss(params: Params, batch: Batch) -> Float[Array, ""]:
        total, count = token_loss(structure.merge(params), batch["tokens"], batch["lengths"])
        return total / count

    trained = fit(structure.logical_axes, params, loss, batches(), schedule, label)
    return structure.merge(trained)


def lm_figures(
    model: LanguageModel, tokens: Int[np.ndarray, "N T"], lengths: Int[np.ndarray, " N"]
) -> dict[str, float]:
    """`nats_per_token` on captions that it was not trained on."""
    structure, params = split(model)
    loss = jax.jit(lambda p, t, n: token_loss(structure.merge(p), t, n))
    total, count = loss(params, tokens, lengths)
    return {"nats_per_token": float(total / count), "captions": len(tokens)}


def _epochs(n: int, batch_size: int, rng: np.random.Generator) -> Iterable[np.ndarray]:
    """Shuffled passes without end; the rows that fill no batch wait for another pass."""
    while True:
        order = rng.permutation(n)
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
