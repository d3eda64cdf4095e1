"""What a step spends its time on, as a trace of the profiler says."""

import collections

import jax
import jax.numpy as jnp
import pytest

from har_jax.training.profile import OneStep, Profile, _outermost, _part_of, step_shares

Event = collections.namedtuple("Event", "start_ns end_ns stats")


@pytest.fixture(scope="module")
def step():
    """A step that writes 40 tokens, far dearer than what it looks at and learns from."""

    def step(x):
        with jax.named_scope("encode"):
            seen = jnp.tanh(x @ x)

        def loss(x):
            with jax.named_scope("prefill"):
                prefix = jnp.sin(x @ seen)
            with jax.named_scope("decode"):
                turn = lambda s: (s[0] + 1, jnp.tanh(s[1] @ x))  # noqa: E731
                start = (0, jax.lax.stop_gradient(prefix))
                _, written = jax.lax.while_loop(lambda s: s[0] < 40, turn, start)
            return jnp.sum(jax.lax.stop_gradient(written) * (prefix @ x))

        return jax.grad(loss)(x)

    return jax.jit(step)


def shares_of(step, profile, steps):
    x = jnp.eye(256)
    step(x).block_until_ready()
    found = {}
    with profile:
        profile.begin(0)
        for number in range(1, steps + 1):
            with profile.step(number):
                output = step(x)
            found |= profile.after(number, output, lambda: step.lower(x).compile().as_text())
    return found


def test_the_shares_of_a_trace(step, tmp_path):
    found = shares_of(step, Profile(tmp_path, 2, 4), 5)
    assert set(found) == {"encode_share", "prefill_share", "rollout_share", "update_share"}
    assert sum(found.values()) == pytest.approx(1)
    assert found["rollout_share"] > 0.5 > found["update_share"] > 0
    assert list(tmp_path.rglob("*.xplane.pb"))  # for those who asked for the trace


def test_one_step_is_traced_unasked_and_nothing_is_kept(step, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert shares_of(step, OneStep(), 5)["rollout_share"] > 0.5
    assert not list(tmp_path.iterdir())
    assert shares_of(step, OneStep(), 2) == {}  # the third step never came


def test_a_trace_of_somebody_else_is_left_alone(step, tmp_path):
    with jax.profiler.trace(str(tmp_path)):
        assert shares_of(step, OneStep(), 4) == {}
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_a_run_goes_on_where_no_trace_can_be_written(step, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert shares_of(step, OneStep(), 4) == {}


def test_a_trace_of_another_program_says_nothing(step, tmp_path):
    shares_of(step, Profile(tmp_path, 2, 2), 3)
    other = jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile().as_text()
    assert step_shares(tmp_path, other) == {}
    assert step_shares(tmp_path / "nothing", other) == {}


@pytest.mark.parametrize(
    ("scopes", "part"),
    [
        ("jit(step)/encode/dot_general", "encode"),
        ("jit(step)/jvp(prefill)/while/body/closed_call/dot_general", "prefill"),
        ("jit(step)/jvp(project)/dot_general", "prefill"),
        ("jit(step)/transpose(jvp(prefill))/while/body/dot_general", "update"),
        ("jit(step)/jvp(decode)/while/body/prefill/dot_general", "rollout"),
        ("jit(step)/jvp(score)/dot_general", "update"),
        ("jit(step)/jvp(reward)/pure_callback", ""),
        ("jit(step)/encoded/add", "update"),
        ("", "update"),
    ],
)
def test_the_part_of_an_operation(scopes, part):
    assert _part_of(scopes) == part


def test_what_lies_in_a_loop_counts_once():
    found = [(5, 6, "dot"), (0, 10, "while"), (0, 3, "dot"), (10, 12, "copy"), (11, 12, "inner")]
    assert list(_outermost(found)) == [("while", 10), ("copy", 2)]
