"""GPT-2 against transformers' on drawn configurations, its verbs against each other, its files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

from har_jax.errors import UserError
from har_jax.interchange.families.gpt2 import load_gpt2, save_gpt2
from har_jax.models.decoders.gpt2 import GPT2, KV, GPT2Config
from har_jax.models.functional import split, structure_of
from har_jax.sharding import make_mesh
from tests.helpers import drawn, initialise

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 1e-4  # of the output's scale
SMALL = GPT2Config(
    vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2, n_inner=20, eos_token_id=30
)


def draw_config(rng: np.random.Generator) -> dict:
    """Odd sizes, every activation and way of scaling, tied or not."""
    heads = int(rng.integers(1, 5))
    return {
        "vocab_size": int(rng.integers(11, 70)),
        "n_positions": int(rng.integers(24, 60)),
        "n_embd": heads * int(rng.integers(3, 9)),
        "n_layer": int(rng.integers(1, 4)),
        "n_head": heads,
        "n_inner": None if rng.random() < 0.4 else int(rng.integers(5, 50)),
        "activation_function": str(rng.choice(["gelu_new", "gelu_new", "gelu", "relu", "silu"])),
        "layer_norm_epsilon": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "scale_attn_weights": bool(rng.random() < 0.8),
        "scale_attn_by_inverse_layer_idx": bool(rng.random() < 0.3),
        "reorder_and_upcast_attn": bool(rng.random() < 0.3),
        "tie_word_embeddings": bool(rng.random() < 0.7),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "attn_implementation": "eager",
    }


def random_torch_gpt2(config: dict, seed: int) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def assert_close(ours, theirs, what: str) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max(), what


def whole_sequence(structure):
    """Tokens [B,T] to hidden states [B,T,D] and logits [B,T,V]; compiled fast rather than well."""

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, tokens):
        model = structure.merge(params)
        hidden, _ = model.prefill(model.embed(tokens))
        return hidden, model.logits(hidden)

    return run


@pytest.mark.parametrize("seed", drawn((0, 2, 4, 5, 7), 40))
def test_parity_and_round_trip(seed, tmp_path):
    rng = np.random.default_rng(seed)
    config = draw_config(rng)
    reference = random_torch_gpt2(config, seed)
    reference.save_pretrained(tmp_path / "theirs")
    tokens = rng.integers(0, config["vocab_size"], (2, int(rng.integers(10, 24))))
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens), output_hidden_states=True)
    ours = load_gpt2(tmp_path / "theirs")
    structure, params = split(ours)
    hidden, logits = whole_sequence(structure)(params, tokens)
    assert_close(hidden, theirs.hidden_states[-1], "hidden")
    assert_close(logits, theirs.logits, "logits")

    save_gpt2(ours, tmp_path / "ours")
    before = safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
        assert tensor.tobytes() == after[name].tobytes(), name


@pytest.fixture(scope="module")
def small():
    structure, params = initialise(lambda key: GPT2(SMALL, rngs=nnx.Rngs(key)), 0)
    params = {k: v * 5 if v.ndim > 1 else v for k, v in params.items()}
    return structure, params


@pytest.fixture(scope="module")
def directory(small, tmp_path_factory):
    structure, params = small
    path = tmp_path_factory.mktemp("gpt2") / "model"
    save_gpt2(structure.merge(params), path)
    return path


def test_every_way_of_reading_agrees(small):
    """Prefill and steps to the last position, and prefill and extend, equal one full pass."""
    structure, params = small
    tokens = np.random.default_rng(0).integers(0, 31, (3, SMALL.n_positions))
    p = 5

    @jax.jit
    def full(params):
        model = structure.merge(params)
        return model.prefill(model.embed(tokens))[0]

    @jax.jit
    def stepwise(params):
        model = structure.merge(params)
        hidden, cache = model.prefill(model.embed(tokens[:, :p]), room=tokens.shape[1] - p)

        def step(cache, t):
            hidden, cache = model.step(model.embed(jnp.asarray(tokens)[:, t]), cache, t)
            return cache, hidden

        _, more = jax.lax.scan(step, cache, jnp.arange(p, tokens.shape[1]))
        return jnp.concatenate([hidden, jnp.moveaxis(more, 0, 1)], axis=1)

    @jax.jit
    def in_parts(params):
        model = structure.merge(params)
        x = model.embed(tokens)
        first, cache = model.prefill(x[:, :p])
        second, cache = model.extend(x[:, p : p + 4], cache)
        third, cache = model.extend(x[:, p + 4 :], cache)
        return jnp.concatenate([first, second, third], axis=1)

    wanted = full(params)
    assert_close(stepwise(params), wanted, "steps")
    assert_close(in_parts(params), wanted, "parts")


def test_gradients_with_respect_to_the_cache(small):
    """As ZeroCap takes them: against differences along a drawn direction."""
    structure, params = small
    tokens = np.random.default_rng(1).integers(0, 31, (2, 7))
    shape = (2, SMALL.n_head, 6, SMALL.head_dim)
    keys = iter(jax.random.split(jax.random.key(0), 2 * SMALL.n_layer))
    along = tuple(
        KV(*(jax.random.normal(next(keys), shape) for _ in "kv")) for _ in range(SMALL.n_layer)
    )

    @jax.jit
    def slope_and_difference(params):
        model = structure.merge(params)
        _, start = model.prefill(model.embed(tokens[:, :6]))

        def loss(cache):
            hidden, _ = model.extend(model.embed(tokens[:, 6:]), cache)
            return jax.nn.logsumexp(model.logits(hidden)[:, 0] * 2, axis=-1).sum()

        def moved(by):
            return loss(jax.tree.map(lambda x, d: x + by * d, start, along))

        products = jax.tree.map(lambda g, d: (g * d).sum(), jax.grad(loss)(start), along)
        return sum(jax.tree.leaves(products)), (moved(1e-2) - moved(-1e-2)) / 2e-2

    slope, difference = map(float, slope_and_difference(params))
    assert abs(difference) > 1e-2
    assert abs(slope - difference) <= 2e-2 * abs(difference)


def test_transformers_loads_what_we_save(small, directory):
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    structure, params = small
    tokens = np.arange(14).reshape(2, 7)
    _, logits = whole_sequence(structure)(params, tokens)
    assert_close(logits, theirs.eval()(torch.tensor(tokens)).logits.detach(), "logits")
    assert load_gpt2(directory).config == SMALL


def test_sharded_over_a_mesh(small, directory):
    structure, params = small
    mesh = make_mesh(2, 2, 2)
    _, sharded = split(load_gpt2(directory, mesh=mesh))
    kernel = sharded["layers.0.attn.qkv.kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 3, 1, 8)
    tokens = np.arange(28).reshape(4, 7)
    run = whole_sequence(structure)
    wanted = run(params, tokens)[1]
    with jax.set_mesh(mesh):
        assert_close(run(sharded, tokens)[1], wanted, "logits")


def test_names_of_old_files(small, directory, tmp_path):
    """OpenAI's files: no `transformer.`, causal masks among the weights, the embeddings twice."""
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    old = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    for i in range(SMALL.n_layer):
        old[f"h.{i}.attn.bias"] = np.ones((1, 1, 16, 16), np.uint8)
        old[f"h.{i}.attn.masked_bias"] = np.float32(-1e4)[None]
    old["lm_head.weight"] = old["wte.weight"].copy()
    safetensors.numpy.save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    loaded = split(load_gpt2(tmp_path))[1]
    assert all((loaded[name] == value).all() for name, value in small[1].items())


def test_bfloat16(small, directory):
    """Computed in bfloat16, the logits are off by its own rounding."""
    structure, params = small
    low = split(load_gpt2(directory, dtype=jnp.bfloat16))[1]
    tokens = np.arange(14).reshape(2, 7)

    @jax.jit
    def logits(params, x):
        model = structure.merge(params)
        return model.logits(model.prefill(x)[0])

    x = np.asarray(params["embed_tokens.embedding"])[tokens]
    wanted, got = logits(params, x), logits(low, jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.float32
    assert np.abs(got - wanted).max() <= 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("n_embd", "n_layer", "n_head", "parameters"),
    [
        (768, 12, 12, 124_439_808),
        (1024, 24, 16, 354_823_168),
        (1600, 48, 25, 1_557_611_200),
    ],
    ids=["small", "medium", "xl"],
)
def test_published_sizes(n_embd, n_layer, n_head, parameters):
    """As transformers counts them, shaped and never allocated, on either side."""
    sizes = {"n_embd": n_embd, "n_layer": n_layer, "n_head": n_head}
    structure = structure_of(lambda: GPT2(GPT2Config(**sizes), rngs=nnx.Rngs(0)))
    assert sum(x.size for x in structure.shapes.values()) == parameters
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    assert theirs.num_parameters() == parameters


# ---------------------------------------------------------------------------------- mistakes


def test_more_tokens_than_positions(small):
    structure, params = small
    model = structure.merge(params)
    for length, room in ((17, 0), (10, 7)):
        with pytest.raises(UserError, match="17 tokens, but this GPT-2 has positions for 16"):
            model.prefill(jnp.zeros((1, length, 16)), room=room)
    kv = jnp.zeros((1, 2, 12, 8))
    with pytest.raises(UserError, match="17 tokens"):
        model.extend(jnp.zeros((1, 5, 16)), (KV(kv, kv),) * 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mistral"}, "'gpt2' is needed"),
        ({"n_head": 3}, "n_embd 16 is not a multiple of n_head 3"),
        ({"activation_function": "gelu_nwe"}, r"\(did you mean 'gelu_new'\?\)"),
        ({"add_cross_attention": True}, "only decoders that read nothing else"),
        ({"n_layer": 3}, r"h\.2\.attn\.c_attn\.weight \[16, 48\] is missing.*and 8 more"),
        ({"n_positions": 9}, r"wpe.weight is \[16, 16\] in the file and \[9, 16\] in the model"),
    ],
)
def test_a_config_that_does_not_fit(directory, tmp_path, change, said):
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "model.safetensors").symlink_to(directory / "model.safetensors")
    with pytest.raises(UserError, match=said):
        load_gpt2(tmp_path)
