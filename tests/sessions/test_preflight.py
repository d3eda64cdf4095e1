"""Preflight: names of topologies, what a device holds, and a step compiled from a blueprint."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from har_jax import preflight
from har_jax.config import Config, DataConfig, LoraConfig, ModelConfig
from har_jax.errors import UserError
from har_jax.hardware import GIB, Chip
from har_jax.loading.blueprint import draw
from har_jax.presets.published import CONFIGS, described
from har_jax.sessions import budget as budgets
from har_jax.sessions import meshes
from har_jax.sessions.collectives import collectives
from har_jax.sessions.preflight import _out_of_memory, alternatives, compile_program
from har_jax.sessions.topologies import parse
from har_jax.sharding import make_mesh
from tests.helpers import long


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("v5e:4x4", "v5e:4x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5e-8", "v5e:2x4"),
        ("v5p-128", "v5p:4x4x4"),
        ("v5p:2x2x1", "v5p:2x2x1"),
        ("tpu7x:2x2x1", "tpu7x:2x2x1"),
        ("h100:8", "h100:8"),
        ("cpu:8", "cpu:8"),
    ],
)
def test_names_of_topologies(text, means):
    assert str(parse(text)) == means


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5x:4x4", r"'v5x' is unknown.*did you mean 'v5[ep]'.*known are v4, v5e"),
        ("v5e", r"give a shape after v5e, such as v5e:4x4"),
        ("h100:2x2", r"give a shape after h100, such as h100:8"),
        ("v5litepod-17", r"slices of v5litepod are v5litepod-1, v5litepod-4"),
        ("cpu:0", r"'cpu:?0?' is unknown|unknown"),
    ],
)
def test_names_that_mean_nothing(text, said):
    with pytest.raises(UserError, match=said):
        parse(text)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Small models: `config.json`s and nothing else."""
    root = tmp_path_factory.mktemp("shapes")
    clip = json.loads(json.dumps(CONFIGS["clip-vit-large-patch14"]))
    clip["vision_config"] |= dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    clip["vision_config"] |= dict(image_size=28)
    lm = CONFIGS["Mistral-7B-v0.1"] | dict(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    for name, config in {"encoder": clip, "lm": lm}.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    return {name: str(root / name) for name in ("encoder", "lm")}


def configuration(directories, **changes):
    model = ModelConfig(**directories, scan_layers=True)
    config = Config(
        stage="scst",
        init_from="-",
        batch_size=16,
        data=DataConfig(max_tokens=8),
        model=model,
    )
    return config.changed(**changes)


@pytest.mark.parametrize(
    "changes", [*long([{}]), {"model.lora.rank": 4, "model.frozen_dtype": "int8"}]
)
def test_kept_bytes_are_those_of_the_arguments(directories, changes):
    """Against what the compiled step is given on each device."""
    config = configuration(directories, **changes)
    blueprint, mesh = draw(config.model), make_mesh(1, 4, 2)
    found = budgets.budget(blueprint, config, mesh)
    program = compile_program("train", blueprint, config, mesh)
    batch = sum(x.size * x.dtype.itemsize for x in blueprint.batch(config).values()) / 4
    assert sum(found.kept.values()) == pytest.approx(program.arguments - batch, rel=0.03)


def test_a_cache_is_as_large_as_its_arrays(directories):
    config = configuration(directories)
    blueprint = draw(config.model)
    one = budgets.cache_bytes_per_token(blueprint, make_mesh(8, 1, 1))
    assert one == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, float32
    assert budgets.cache_bytes_per_token(blueprint, make_mesh(4, 1, 2)) == one / 2


def test_a_run_that_cannot_fit_is_refused(directories, monkeypatch):
    config = configuration(directories)
    blueprint, mesh = draw(config.model), make_mesh()
    found = budgets.budget(blueprint, config, mesh)
    monkeypatch.setattr(budgets, "device_memory", lambda device: found.total)
    budgets.refuse_if_too_large(found, mesh)
    monkeypatch.setattr(budgets, "device_memory", lambda device: found.total * 0.99)
    with pytest.raises(UserError, match=r"needs at least .* GiB on each device, which has"):
        budgets.refuse_if_too_large(found, mesh)


@pytest.mark.parametrize(("kernel", "its"), [("cudnn", "GPUs"), ("splash", "TPUs")])
def test_attention_of_other_devices(directories, kernel, its):
    """A run that asks for it is refused; a captioner that was trained so is read here too."""
    changes = {"model.attention": kernel, "model.dtype": "bfloat16"}
    config = configuration(directories, **changes)
    blueprint = draw(config.model)
    with pytest.raises(UserError, match=f"attention={kernel} is a kernel for {its}, .* are CPUs"):
        meshes.choose_mesh(blueprint, config, jax.devices())
    placed = blueprint.placed_on(make_mesh())
    assert (blueprint.config.attention, placed.config.attention) == (kernel, "blocks")
    assert placed.model.attention == "blocks"


def test_floors_are_the_issue_tables(directories):
    """`docs/performance.md`, "Floors": one H100, B=64, K=5, T=20, LoRA, 256 patches and BOS."""
    folder = described_folder(directories)
    model = ModelConfig(
        **folder, dtype="bfloat16", frozen_dtype="bfloat16", lora=LoraConfig(rank=16)
    )
    config = Config(
        stage="scst", init_from="-", batch_size=64, data=DataConfig(max_tokens=20), model=model
    )
    chip = Chip("h100", "", "cuda", 80 * GIB, 989e12, 3352e9, 0)
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    phases = budgets.floors(draw(model), config, mesh)
    seconds = {name: phase.seconds(chip) * 1e3 for name, phase in phases.items()}
    assert seconds["encode"] == pytest.approx(10, abs=1.5)
    assert seconds["prefill"] == pytest.approx(233, rel=0.03)
    assert seconds["rollout"] == pytest.approx(126, rel=0.1)
    assert seconds["update"] == pytest.approx(421, rel=0.05)
    # Of layers in 8 bits half is read, and a scale for 128 numbers; of the output layer all.
    layer, head = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336), 4096 * 32_000
    few = dataclasses.replace(model, frozen_dtype="int8")
    small = budgets.floors(draw(few), config, mesh)
    assert phases["rollout"].bytes == 20 * 2 * (32 * layer + head)
    assert small["rollout"].bytes == 20 * (32 * layer * (1 + 4 / 128) + 2 * head)
    assert small["rollout"].caches == phases["rollout"].caches
    assert small["rollout"].flops == phases["rollout"].flops


def described_folder(directories):
    import pathlib
    import tempfile

    folder = pathlib.Path(tempfile.mkdtemp())
    config = Config(model=ModelConfig(encoder="x/clip-vit-large-patch14", lm="x/Mistral-7B-v0.1"))
    made = described(config, folder).model
    return {"encoder": made.encoder, "lm": made.lm}


@pytest.mark.parametrize("name", ["train", "caption"])
def test_a_step_is_compiled_from_shapes(directories, name):
    config = configuration(directories, **{"mesh.tensor": 2})
    blueprint, mesh = draw(config.model), make_mesh(1, 4, 2)
    program = compile_program(name, blueprint, config, mesh)
    assert program.fits and program.peak > program.arguments > 0
    assert {c.kind for c in program.collectives} >= {"all-reduce", "all-gather"}
    assert program.in_decode_loop  # products split over tensor are summed
    heads = 64 * 64  # the output layer: not for every token
    assert all(c.bytes < 4 * heads for c in program.in_decode_loop)


@pytest.mark.parametrize("stage", [*long(["mle"]), "scst"])
def test_the_command(directories, stage, capsys):
    arguments = [
        f"--config={stage}:coco",
        "--config.init_from=",
        "--json",
        "--config.batch_size=16",
    ]
    arguments += [f"--config.model.{part}={where}" for part, where in directories.items()]
    assert preflight.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["programs"]["train"]["peak"] > 0
    rollout = [name for name in told["holds"] if name.startswith("rollout")]
    assert bool(rollout) == (stage == "scst")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=scst:coco", "--topology=v5z:4x4"], "known are"),
        (["--config=scst:coco", "--programs=trian"], "choose train, caption"),
        (["--config=scst:coco", "--config.microbatches=3"], "does not divide"),
        (["--config=scst:coco", "--config.model.frozen_dtype=nf4"], "of a frozen decoder"),
    ],
)
def test_bad_arguments_are_one_line(arguments, said, capsys):
    assert preflight.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_what_is_tried_needs_less(directories):
    """Every alternative is a valid configuration, and none asks for what is already there."""
    config = configuration(directories, batch_size=64)
    gathered = config.changed(**{"model.decode_weights": "gathered"})
    assert next(alternatives(gathered, 16)) == {"model.decode_weights": "in_place"}
    tried = list(alternatives(config, 16))
    assert {"microbatches": 2} in tried and any("model.lora.rank" in t for t in tried)
    for settings in tried:
        assert config.changed(**settings) != config


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: HLO temporaries (19.53G) exceeds available HBM (15.75G)", 19.53),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 20.31G of 15.75G hbm. Exceeded by 4.56G",
            20.31,
        ),
        ("INTERNAL: libdevice not found", None),
    ],
)
def test_a_compilers_refusal_is_read(message, needed):
    found = _out_of_memory(message)
    assert found is None if needed is None else found / GIB == pytest.approx(needed)


PROGRAM = """\
%inner (p: f32[8]) -> f32[8] {
  %g = f32[8,16]{1,0} all-gather(%p), dimensions={0}
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = f32[8]{0} call(%x), to_apply=%inner
  %r = (bf16[4]{0}, bf16[64,4]{1,0}) all-gather-start(%y), dimensions={0}
}
%cond (p: (s32[], f32[8])) -> pred[] {
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %s = f32[2]{0} reduce-scatter(%a), dimensions={0}
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body, metadata={op_name="f/decode/while"}
}
"""


def test_collectives_are_found_where_they_are():
    found = {(c.kind, c.result, c.bytes, bool(c.loop)) for c in collectives(PROGRAM)}
    assert found == {
        ("all-gather", "f32[8,16]", 512, True),
        ("all-gather", "bf16[64,4]", 512, True),
        ("reduce-scatter", "f32[2]", 8, False),
    }


def test_the_published_shapes_are_the_presets():
    """The models that presets name have shapes, of 7 billion numbers together."""
    blueprint = draw(ModelConfig(**described_folder({}), lora=LoraConfig(rank=16)))
    assert sum(int(np.prod(x.shape)) for x in blueprint.shapes.values()) > 7.5e9
    assert dataclasses.asdict(blueprint.config.lm)["num_hidden_layers"] == 32


@pytest.mark.parametrize(
    ("share", "shape"), [(10.0, (8, 1, 1)), (0.7, (1, 8, 1)), (1e-6, (1, 8, 1))]
)
def test_an_automatic_mesh_splits_no_more_than_it_must(directories, monkeypatch, share, shape):
    """By the memory of devices, as a share of what a whole replica takes."""
    config = configuration(directories, **{"mesh.auto": True, "batch_size": 64})
    blueprint = draw(config.model)
    whole = budgets.budget(blueprint, config, make_mesh(8, 1, 1)).total
    monkeypatch.setattr(meshes, "device_memory", lambda device: whole * share / meshes.SHARE)
    mesh = meshes.choose_mesh(blueprint, config, jax.devices())
    if share == 1e-6:  # nothing fits: the least
        every = [make_mesh(*sizes) for sizes in meshes._sizes(8)]
        least = min(budgets.budget(blueprint, config, m).total for m in every)
        assert budgets.budget(blueprint, config, mesh).total == least
    else:
        assert tuple(mesh.shape.values()) == shape


def test_an_automatic_mesh_divides_the_batch(directories):
    config = configuration(directories, **{"mesh.auto": True, "batch_size": 4})
    mesh = meshes.choose_mesh(draw(config.model), config, jax.devices())
    assert tuple(mesh.shape.values()) == (1, 4, 2)
