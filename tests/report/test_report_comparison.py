"""The paper's numbers as it prints them, and a run's beside them."""

import pytest

from roboalign.evaluate.success import success_table
from roboalign.report.comparison import Measured, compare_with_paper, format_comparison
from roboalign.report.paper_numbers import METRICS, MODEL

TITLES = {
    "base": "Base",
    "ecot": "SFT + ECoT",
    "sft": "SFT",
    "roboalign": "RoboAlign",
    "blind": "Blind",
}


def episodes(solved: str, run_seed: int = 0) -> list[dict]:
    """One episode a letter: s solved, f failed, c crashed."""
    return [
        {
            "task": "a",
            "seed": number,
            "run_seed": run_seed,
            "success": letter == "s",
            "steps": 5,
            "crash": "NaN" if letter == "c" else None,
        }
        for number, letter in enumerate(solved)
    ]


def measured(records: dict, **changes) -> Measured:
    values = {
        "name": "mine",
        "benchmark": "metaworld",
        "tasks": ("a",),
        "model": "2 million parameters",
        "counts": "matched",
        "success": success_table(records, [])["arms"],
        "episodes": records,
    }
    return Measured(**{**values, **changes})


def test_the_papers_averages_are_those_of_its_columns():
    suites = [METRICS[f"libero-{suite}"].values for suite in ("spatial", "object", "goal", "long")]
    average = METRICS["libero-avg"].values
    for arm in set(suites[0]) & set(average):
        assert sum(suite[arm] for suite in suites) / 4 == pytest.approx(
            average[arm], abs=0.051
        )  # printed to 0.1
    for arm, mean in METRICS["calvin-mean"].values.items():
        shares = [METRICS[f"calvin-{count}"].values[arm] for count in range(1, 6)]
        assert sum(shares) / 100 == pytest.approx(mean, abs=0.0051)
    assert set(average) - set(suites[0]) == {
        "ecot",
        "language-rl",
        "trajectory-rl",
    }  # the paper's seven baselines,
    assert len(average) == 8  # and RoboAlign
    assert METRICS["real-avg"].values["roboalign"] == pytest.approx(
        (87.5 + 58.3 + 70.8 + 50.0) / 4, abs=0.051
    )
    assert METRICS["libero-long"].values["trajectory-rl"] == 64.6 and average["ecot"] == 67.7


def test_a_row_has_both_numbers_and_the_paired_differences():
    run = measured(
        {
            "sft": episodes("ssffffffff"),
            "roboalign": episodes("sssssfffcf"),
            "blind": episodes("f" * 10),
        }
    )
    rows = {
        row["arm"]: row for row in compare_with_paper(run, METRICS["libero-avg"], TITLES)["rows"]
    }
    assert list(rows) == list(TITLES)
    ours = rows["roboalign"]
    assert (
        ours["paper"] == 86.8 and ours["paper_minus_sft"] == 8.1 and ours["training_seeds"] == [0]
    )
    assert (ours["measured"]["successes"], ours["measured"]["n"], ours["measured"]["crashes"]) == (
        5,
        9,
        1,
    )
    assert ours["minus_sft"]["value"] == pytest.approx(3 / 9) and ours["minus_sft"]["n"] == 9
    assert ours["minus_sft"]["p"] == 0.25  # three pairs differ, all one way: 2 * 0.5 ** 3
    assert (
        ours["minus_base"] is None
        and rows["sft"]["paper_minus_sft"] is None
        and rows["sft"]["minus_sft"] is None
    )
    low, high = (rows["sft"]["measured"][name] for name in ("low", "high"))
    assert (low, high) == (
        pytest.approx(0.0567, abs=1e-4),
        pytest.approx(0.5098, abs=1e-4),
    )  # Wilson, 2 of 10
    assert rows["base"]["measured"] is None and rows["base"]["paper"] == 73.9
    assert rows["blind"]["paper"] is None and rows["blind"]["minus_sft"]["value"] == pytest.approx(
        -0.2
    )


def test_arms_that_neither_side_has_are_left_out_and_lost_records_leave_the_rates():
    run = measured({"sft": episodes("sf")}, episodes={})
    rows = compare_with_paper(run, METRICS["real-avg"], TITLES)["rows"]
    assert [row["arm"] for row in rows] == ["base", "sft", "roboalign"]
    assert rows[1]["measured"]["rate"] == 0.5 and rows[1]["minus_base"] is None


def test_what_is_not_comparable_is_named():
    records = {"sft": episodes("sf"), "action-sft": episodes("ss")}
    told = " ".join(
        compare_with_paper(measured(records), METRICS["calvin-mean"], TITLES)["not_comparable"]
    )
    for part in (
        "Another benchmark",
        "1 tasks of metaworld (a)",
        "Another unit",
        f"the paper's is {MODEL}",
        "Other counts",
        "share no scale",
    ):
        assert part in told
    same = measured(
        records, benchmark="libero", model=f"7 billion parameters, base: {MODEL}", counts="paper"
    )
    assert compare_with_paper(same, METRICS["libero-avg"], TITLES)["not_comparable"] == []


def test_the_text_has_every_number():
    run = measured(
        {"sft": episodes("ssffffffff"), "roboalign": episodes("sssssfffff"), "base": episodes("cc")}
    )
    text = format_comparison(compare_with_paper(run, METRICS["libero-avg"], TITLES))
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "86.8%",
        "+8.1",
        "50.0%",
        "23.7 to 76.3",
        "+30.0",
        "+0.0 to +60.0",
        "2 crashed",
        "67.7%",
        "not run",
        "Another model",
    ):
        assert part in text, part
    assert "2.57" in format_comparison(compare_with_paper(run, METRICS["calvin-mean"], TITLES))
