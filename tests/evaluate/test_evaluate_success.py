"""Success tables: crashes apart, pairs on the same episodes, refused records."""

import json

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.success import format_success, success_table


def episode(task, seed, success, crash=None, run_seed=0):
    record = {
        "task": task,
        "seed": seed,
        "success": success,
        "steps": 40,
        "crash": crash,
        "seconds": 1.0,
    }
    return {**record, "run_seed": run_seed}


def arm(successes, tasks=("reach", "push"), n=10):
    """First `successes` episodes of each task succeed."""
    return [episode(task, seed, seed < successes) for task in tasks for seed in range(n)]


def test_counts_rates_and_pairs():
    table = success_table({"sft": arm(4), "rl": arm(7)})
    sft, rl = table["arms"]["sft"]["overall"], table["arms"]["rl"]["overall"]
    assert (sft["successes"], sft["n"], sft["rate"]) == (8, 20, 0.4)
    assert (rl["successes"], rl["n"], rl["rate"]) == (14, 20, 0.7)
    assert table["arms"]["rl"]["tasks"]["push"]["successes"] == 7
    (pair,) = table["pairs"]
    assert (pair["before"], pair["after"], pair["only_before"], pair["only_after"]) == (
        "sft",
        "rl",
        0,
        6,
    )
    assert pair["p"] == pytest.approx(2 / 2**6)
    assert pair["difference"]["value"] == pytest.approx(0.3)
    assert 0 < pair["difference"]["low"] < 0.3 < pair["difference"]["high"]
    json.dumps(table, allow_nan=False)


def test_a_crash_is_not_a_failure():
    records = [*arm(5, tasks=("reach",)), episode("reach", 10, False, crash="MuJoCo: NaN in qacc")]
    row = success_table({"a": records})["arms"]["a"]["overall"]
    assert (row["successes"], row["n"], row["crashes"], row["rate"]) == (5, 10, 1, 0.5)


def test_pairs_leave_out_crashed_and_unshared_episodes():
    before = [
        episode("reach", 0, True),
        episode("reach", 1, False, crash="x"),
        episode("reach", 2, False),
    ]
    after = [episode("reach", 0, True), episode("reach", 1, True), episode("reach", 3, True)]
    (pair,) = success_table({"a": before, "b": after})["pairs"]
    assert (pair["n"], pair["crashes_left_out"]) == (1, 1)


def test_nothing_finished_has_no_rate():
    row = success_table({"a": [episode("reach", 0, False, crash="x")]})["arms"]["a"]["overall"]
    assert (row["rate"], row["low"], row["high"], row["n"], row["crashes"]) == (
        None,
        0.0,
        1.0,
        0,
        1,
    )


def test_training_seeds_are_pooled_and_shown_apart():
    records = [
        episode("reach", seed, seed < 3 + run, run_seed=run)
        for run in range(2)
        for seed in range(5)
    ]
    rows = success_table({"a": records})["arms"]["a"]
    assert rows["overall"]["successes"] == 7
    assert [row["successes"] for row in rows["run_seeds"].values()] == [3, 4]


def test_p_values_are_corrected_for_the_number_of_pairs():
    table = success_table({"a": arm(1), "b": arm(4), "c": arm(4)}, pairs=[("a", "b"), ("b", "c")])
    first, second = table["pairs"]
    assert first["p_holm"] == pytest.approx(2 * first["p"])
    assert second["p"] == second["p_holm"] == 1.0


def test_one_task_has_no_interval_over_tasks():
    (pair,) = success_table({"a": arm(1, tasks=("reach",)), "b": arm(4, tasks=("reach",))})["pairs"]
    assert pair["difference_by_task"] is None


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([episode("reach", 1, True), episode("reach", 1, False)], "already recorded"),
        ([{"task": "reach", "seed": 1, "success": True}], "lacks crash, steps"),
    ],
)
def test_broken_records_are_refused(records, message):
    with pytest.raises(RoboAlignError, match=message):
        success_table({"a": records})


def test_unknown_arm_is_refused():
    with pytest.raises(RoboAlignError, match="no arm is called 'rk'"):
        success_table({"a": arm(1)}, pairs=[("a", "rk")])


def test_text_names_counts_intervals_and_crashes():
    text = format_success(
        success_table({"sft": arm(4), "rl": [*arm(7), episode("push", 99, False, crash="x")]})
    )
    assert "8/20 = 40.0%" in text
    assert "14/20 = 70.0%" in text
    assert "+30.0 points" in text
    assert max(map(len, text.splitlines())) <= 100
