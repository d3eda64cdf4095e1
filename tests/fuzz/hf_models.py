"""Small whole model directories, from which drawn cases are made by damaging a file."""

from __future__ import annotations

import json
import pathlib
import random
import shutil

import jax
from flax import nnx

from har_jax.config import LoraConfig, ModelConfig
from har_jax.data.images import Preprocessor
from har_jax.interchange import llava, peft
from har_jax.loading.blueprint import draw
from har_jax.models.functional import part, split
from har_jax.text.tokenizer import load_tokenizer
from tests.fuzz import hostile
from tests.workspace import write_clip, write_mistral

TEXTS = ["a dog runs on the grass", "two cats sit on a red chair", "a man rides a horse"]
PARTS = ("mistral", "clip", "llava", "peft")


def build(root: pathlib.Path) -> None:
    """`root/{mistral,clip,llava,peft}`."""
    write_mistral(root / "mistral", TEXTS, vocab=300)
    write_clip(root / "clip", TEXTS, 0)
    model = ModelConfig(
        encoder=str(root / "clip"),
        lm=str(root / "mistral"),
        lora=LoraConfig(2, 4.0, "attn.q"),
        train_lm=False,
    )
    blueprint = draw(model)
    tokenizer = load_tokenizer(root / "mistral")
    whole = blueprint.changed(ModelConfig(encoder=model.encoder, lm=model.lm)).with_text(tokenizer)
    pixels, values = Preprocessor.for_size(32).to_hf(), split(whole.build(nnx.Rngs(0)))[1]
    llava.save_llava(whole.config, values, tokenizer, pixels, root / "llava", max_tokens=9)
    adapted = split(blueprint.build(nnx.Rngs(0)))[1]
    (root / "peft").mkdir()
    lm = part(adapted, "lm")
    peft.save_adapters(lm, model.lora, root / "peft", base=model.lm, lm=blueprint.config.lm)
    settings = {key: getattr(model, key) for key in peft.PROJECTOR_SETTINGS}
    settings |= {"encoder": model.encoder, "max_tokens": 9}
    peft.save_projector(part(adapted, "projector"), root / "peft", settings)
    jax.clear_caches()


def damaged_copy(
    rng: random.Random, whole: pathlib.Path, folder: pathlib.Path, *names: str
) -> pathlib.Path:
    """A copy of a directory with one or two of its files damaged: those named, or any of it."""
    made = folder / whole.name
    shutil.copytree(whole, made)
    for _ in range(rng.choice([1, 1, 2])):
        file = made / rng.choice(names or sorted(p.name for p in made.iterdir()))
        damage(rng, file)
    return made


def damage(rng: random.Random, file: pathlib.Path) -> None:
    """A file's JSON or bytes damaged, or the file gone, empty, or a directory."""
    what = rng.random()
    if what < 0.06 or not file.is_file():
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        if what < 0.03:
            file.mkdir()
        return
    data = file.read_bytes()
    try:
        if file.suffix == ".json":
            data = hostile.json_bytes(rng, json.loads(data))
        elif file.suffix == ".safetensors":
            data = damaged_safetensors(rng, data)
        else:
            data = hostile.damaged(rng, data)
    except Exception:  # damaged before
        data = hostile.damaged(rng, data)
    file.write_bytes(data)


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    """With a damaged header of the right length, or damaged bytes."""
    n = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3:
        return hostile.damaged(rng, data)
    header = json.loads(data[8 : 8 + n])
    if rng.random() < 0.5:
        _damage_entry(rng, header)
        text = json.dumps(header).encode()
    else:
        text = hostile.json_bytes(rng, header)
    if rng.random() < 0.1:  # a key twice
        text = text.replace(b"{", b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},', 1)
    body = data[8 + n :]
    if rng.random() < 0.1:
        body = hostile.damaged(rng, body)
    return len(text).to_bytes(8, "little") + text + body


def _damage_entry(rng: random.Random, header: dict) -> None:
    """Offsets and shapes that are nearly right."""
    names = [name for name in header if name != "__metadata__"]
    entry, other = header[rng.choice(names)], header[rng.choice(names)]
    what = rng.randrange(6)
    if what == 0:
        entry["data_offsets"] = other["data_offsets"]
    elif what == 1:
        entry["data_offsets"][rng.randrange(2)] += rng.choice([-8, -4, 4, 8])
    elif what == 2:
        entry["shape"] = [*entry["shape"][::-1], rng.choice([1, 1.0, True, -1])]
    elif what == 3:
        entry["dtype"] = rng.choice(["F16", "BF16", "I32", "F8_E4M3", "F4", "C64", "BOOL"])
    elif what == 4:
        entry["shape"] = [-n for n in entry["shape"]]
    else:
        entry["shape"] = [hostile.number(rng), *entry["shape"][1:]]
