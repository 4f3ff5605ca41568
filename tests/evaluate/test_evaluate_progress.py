"""Chains: rates of 1..5 in a row and the mean length, counted by hand; intervals by chain."""

import numpy as np
import pytest

from roboalign.evaluate.progress import episode_parts, progress_difference, progress_rows
from roboalign.evaluate.success import success_table
from roboalign.report.progress_text import format_progress, format_progress_difference

TASKS = {"tasks": ["a", "b", "c", "d", "e"]}


def chain(seed, progress, **more):
    return {
        "task": "chains",
        "seed": seed,
        "success": progress == 5,
        "steps": 100,
        "crash": None,
        "progress": progress,
        "details": TASKS,
        **more,
    }


BEFORE = [chain(0, 0), chain(1, 1), chain(2, 1), chain(3, 5)]
AFTER = [chain(0, 2), chain(1, 1), chain(2, 3), chain(3, 4)]


def test_rates_in_a_row_and_the_mean_by_hand():
    rows = progress_rows([*BEFORE, chain(4, 3, crash="it broke")], resamples=200)
    assert [row["value"] for row in rows["in_a_row"]] == [0.75, 0.25, 0.25, 0.25, 0.25]
    assert (rows["mean"]["value"], rows["mean"]["n"], rows["parts"]) == (7 / 4, 4, 5)
    assert sum(row["value"] for row in rows["in_a_row"]) == pytest.approx(rows["mean"]["value"])


def test_pairs_by_hand():
    pair = progress_difference(BEFORE, AFTER, resamples=200)
    assert pair["mean"]["value"] == (2 + 0 + 2 - 1) / 4
    counts = [(row["only_before"], row["only_after"]) for row in pair["in_a_row"]]
    assert counts == [(0, 1), (0, 2), (0, 1), (0, 0), (1, 0)]
    assert [row["difference"]["value"] for row in pair["in_a_row"]] == [0.25, 0.5, 0.25, 0, -0.25]
    assert [row["p"] for row in pair["in_a_row"]] == [1.0, 0.5, 1.0, 1.0, 1.0]


def test_two_training_seeds_on_a_chain_are_one_unit():
    """Twice the same results say nothing new: the interval is that of one seed."""
    random = np.random.default_rng(0)
    one = [chain(n, int(random.integers(6))) for n in range(40)]
    twice = [{**row, "run_seed": seed} for seed in (0, 1) for row in one]
    single, double = (progress_rows(rows, resamples=500) for rows in (one, twice))
    assert (double["chains"], double["mean"]["n"]) == (40, 80)
    for bound in ("value", "low", "high"):
        assert double["mean"][bound] == pytest.approx(single["mean"][bound])


def test_episodes_of_one_part_have_no_progress():
    plain = [{"task": "t", "seed": n, "success": True, "steps": 1, "crash": None} for n in (0, 1)]
    assert episode_parts(plain) == 0
    assert progress_rows(plain, resamples=9) is None
    table = success_table({"a": plain, "b": plain}, resamples=50)
    assert "progress" not in table["arms"]["a"] and "progress" not in table["pairs"][0]


def test_the_success_table_carries_chains_and_texts_show_them():
    table = success_table({"sft": BEFORE, "roboalign": AFTER}, resamples=200)
    rows = {name: arm["progress"] for name, arm in table["arms"].items()}
    assert rows["roboalign"]["mean"]["value"] == 2.5
    text = format_progress(rows)
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "75.0%" in lines["1"] and "100.0%" in lines["1"] and "1.750" in lines["mean"]
    assert lines["episodes"].split()[1:] == ["4", "4"]
    (pair,) = table["pairs"]
    first, *others = format_progress_difference(pair["progress"])
    assert first.startswith("mean length, after minus before: ") and "0.750" in first
    assert "by after alone 2, by before alone 0: p = 0.50" in others[1]
    assert format_progress({"a": None}) == "" and format_progress_difference(None) == []


def test_chains_that_all_crashed_have_no_numbers():
    crashed = [chain(0, 0, crash="x"), chain(1, 2, crash="y")]
    rows = progress_rows(crashed, resamples=9)
    assert rows["mean"] == {"value": None, "low": None, "high": None, "n": 0}
    assert "–" in format_progress({"a": rows})
    pair = progress_difference(crashed, crashed, resamples=9)
    assert pair["mean"]["value"] is None and format_progress_difference(pair) == []
