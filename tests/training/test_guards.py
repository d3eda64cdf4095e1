"""Guards: what makes each of them trip, when, and that their memory survives a resume."""

import json

import pytest

from har_jax.config import GuardsConfig
from har_jax.training.guards import NAMES, RULES, Guards

SOUND = {
    "bad_end_rate": 0.01,
    "repetition_rate": 0.02,
    "length": 12.0,
    "entropy": 0.9,
    "reward": 1.2,
    "kl": 0.1,
}
BROKEN = {
    "bad_end": {"bad_end_rate": 0.6},
    "repetition": {"repetition_rate": 0.4},
    "length": {"length": 30.0},
    "entropy": {"entropy": 0.001},
    "reward": {"reward": 0.3},
    "kl": {"kl": 5.0},
}


def guards(action="stop", **changes):
    settings = {**dict.fromkeys(NAMES, action), "window": 2, "patience": 2, **changes}
    made = Guards(GuardsConfig(**settings), reference_length=13.0)
    made.begin(SOUND)
    return made


def feed(watch, figures, count, first=10):
    """(step, guard, action) of every trip over so many logs of the same figures."""
    found = []
    for step in range(first, first + 10 * count, 10):
        found += [(t.step, t.guard, t.action) for t in watch.observe(step, figures)]
    return found


def test_a_sound_run_trips_nothing():
    watch = guards()
    assert feed(watch, SOUND, 50) == [] and watch.sound


@pytest.mark.parametrize("name", RULES)
def test_each_guard_names_its_own_fault(name):
    watch = guards()
    found = feed(watch, {**SOUND, **BROKEN[name]}, 2)
    assert found == [(20, name, "stop")]
    assert not watch.sound


@pytest.mark.parametrize("name", RULES)
def test_a_guard_that_is_off_says_nothing(name):
    watch = guards(**{name: "off"})
    assert feed(watch, {**SOUND, **BROKEN[name]}, 5) == [] and watch.sound


def test_one_bad_log_is_forgiven():
    watch = guards(window=1)
    assert feed(watch, {**SOUND, "bad_end_rate": 0.9}, 1) == []
    assert feed(watch, SOUND, 1) == [] and watch.sound
    assert feed(watch, {**SOUND, "bad_end_rate": 0.9}, 1) == []


def test_figures_are_averaged_over_the_window():
    """0.30 every other log is 0.15 on average: below the limit of 0.01 + 0.15."""
    watch = guards(window=4, patience=1)
    for step in range(1, 40):
        value = 0.30 if step % 2 == 0 else 0.0
        assert watch.observe(step, {**SOUND, "bad_end_rate": value}) == []
    assert watch.observe(40, {**SOUND, "bad_end_rate": 0.4})


def test_a_warning_is_given_once_until_it_recovers():
    watch = guards("warn", window=1)
    bad = {**SOUND, "entropy": 0.0}
    assert [step for step, _, _ in feed(watch, bad, 6)] == [20]
    assert watch.sound  # a warning does not bar a checkpoint from being the best
    feed(watch, SOUND, 1)
    assert [step for step, _, _ in feed(watch, bad, 6, first=100)] == [110]


def test_length_may_move_between_the_start_and_the_references():
    watch = Guards(GuardsConfig(length="stop", window=1, patience=1), reference_length=20.0)
    watch.begin({"length": 10.0})
    for length in (5.5, 10, 20, 29):
        assert watch.observe(1, {"length": length}) == []
    assert watch.observe(1, {"length": 31})[0].limit == pytest.approx(30)
    assert watch.observe(1, {"length": 4.5})[0].limit == pytest.approx(5)


def test_without_figures_of_the_start_the_first_log_is_the_start():
    watch = Guards(GuardsConfig(window=1, patience=1))
    assert watch.observe(10, {"bad_end_rate": 0.5}) == []
    assert watch.observe(20, {"bad_end_rate": 0.6}) == []
    assert watch.observe(30, {"bad_end_rate": 0.7})[0].guard == "bad_end"


def test_a_reward_may_be_negative():
    watch = Guards(GuardsConfig(window=1, patience=1, reward_drop=0.5))
    watch.begin({"reward": -1.0})
    assert watch.observe(1, {"reward": -1.4}) == []
    assert watch.observe(2, {"reward": -1.6})[0].guard == "reward"


@pytest.mark.parametrize(
    ("cider", "clip", "trips"),
    [(1.3, 0.70, True), (1.3, 0.79, False), (0.9, 0.70, False), (1.3, 0.9, False)],
)
def test_clip_trips_where_cider_rises_while_clip_score_falls(cider, clip, trips):
    watch = guards()
    watch.begin({"val/CIDEr": 1.0, "val/CLIPScore": 0.8})
    found = watch.observe_validation(100, {"CIDEr": cider, "CLIPScore": clip})
    assert [trip.guard for trip in found] == (["clip"] if trips else [])
    assert watch.observe_validation(100, {"CIDEr": cider}) == []  # no CLIP scored it


def test_rolling_back_lowers_the_rate_and_ends_in_a_stop():
    watch = guards("rollback", max_rollbacks=2, rollback_lr_factor=0.5)
    bad = {**SOUND, "repetition_rate": 0.9}
    for number in (1, 2):
        (trip,) = [*watch.observe(number, bad), *watch.observe(number, bad)]
        assert trip.action == "rollback"
        watch.rolled_back(10 * number, 5, [trip])
        assert watch.lr_scale == 0.5**number and watch.sound
    (trip,) = [*watch.observe(3, bad), *watch.observe(3, bad)]
    assert trip.action == "stop" and "after 2 roll-backs" in trip.text
    assert [r["step"] for r in watch.rollbacks] == [10, 20]


def test_a_restored_guard_does_as_one_that_went_on():
    figures = [{**SOUND, "reward": 1.2 - 0.1 * i, "length": 12.0 + i} for i in range(20)]

    def trips(watch, rows, first):
        return [(t.step, t.guard, t.text) for i, r in rows for t in watch.observe(first + i, r)]

    unbroken = guards("warn", window=3)
    expected = trips(unbroken, list(enumerate(figures)), 0)
    assert {guard for _, guard, _ in expected} == {"reward", "length"}
    for cut in range(1, 20):
        first = guards("warn", window=3)
        found = trips(first, list(enumerate(figures))[:cut], 0)
        second = Guards(first.config, reference_length=13.0)
        second.restore(json.loads(json.dumps(first.state())))
        found += trips(second, list(enumerate(figures))[cut:], 0)
        assert found == expected
