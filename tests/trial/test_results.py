"""`roboalign compare LOG`: the paper's own counts as a golden table, pairs by hand, void attempts, early looks."""

import json

import pytest
from scipy.stats import binomtest, fisher_exact
from trial_studies import TASK, AskedDesk, locked

from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.statistics import holm, wilson
from roboalign.trial.attempts import Outcome
from roboalign.trial.log import TrialLog, read_log
from roboalign.trial.results import results_of

SUCCESS = Outcome(outcome="success")
VOID = Outcome(outcome="excluded", exclusion="robot or controller fault")


def failure(stage=None, **named):
    return Outcome(outcome="failure", failure="dropped it", stage=stage, **named)


def play(folder, plan, key, decide, limit=None):
    """Do trials: `decide(arm, trial, attempt)` gives each one's outcome."""
    with TrialLog(folder / "toy.log.jsonl", plan.sha256) as log:
        if not log.rows:
            log.append("opened", arms={arm: f"policy of {arm}" for arm in plan.arms})
        desk = AskedDesk(plan, log)
        while (trial := desk.trial()) is not None and (limit is None or trial.number <= limit):
            attempt = desk.view()["trial"]["attempt"]
            desk.start(trial.number, attempt, "Ada")
            arm = key.assignment[trial.number - 1]
            desk.end(trial.number, attempt, "Ada", decide(arm, trial, attempt))
    return folder / "toy.log.jsonl"


PAPER = {"base": (4, 17, 5, 5), "aligned": (21, 14, 17, 12)}
"""Successes of 24 trials in the paper's four real-robot tasks: 32.3% and 66.7% over all."""


def paper_log(tmp_path):
    tasks = {f"task {i}": TASK | {"conditions": [f"c{j}" for j in range(24)]} for i in range(4)}
    _, plan, key = locked(tmp_path, tasks=tasks, trials=24)

    def decide(arm, trial, attempt):
        """The first conditions are the easy ones, for both arms."""
        wins = PAPER[arm][int(trial.task[-1])]
        return SUCCESS if int(trial.condition[1:]) < wins else failure()

    return play(tmp_path, plan, key, decide)


def test_the_papers_table(tmp_path, capsys):
    log = paper_log(tmp_path)
    assert main(["compare", str(log), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    arms = result["arms"]
    shares = {arm: [row["rate"] for row in rows["tasks"].values()] for arm, rows in arms.items()}
    assert [round(100 * share, 1) for share in shares["base"]] == [16.7, 70.8, 20.8, 20.8]
    assert [round(100 * share, 1) for share in shares["aligned"]] == [87.5, 58.3, 70.8, 50.0]
    for arm, successes, rate in (("base", 31, 32.3), ("aligned", 64, 66.7)):
        overall = arms[arm]["overall"]
        assert (overall["successes"], overall["n"]) == (successes, 96)
        assert round(100 * overall["rate"], 1) == rate
        assert (overall["low"], overall["high"]) == wilson(successes, 96)
    (pair,) = result["comparisons"]
    # By condition, easy ones first: |21-4| + |17-5| + |12-5| gained, 17 - 14 lost.
    assert (pair["only_after"], pair["only_before"], pair["n"]) == (36, 3, 96)
    assert pair["p"] == pair["p_holm"] == binomtest(36, 39, 0.5).pvalue
    assert [row["only_before"] for row in pair["tasks"].values()] == [0, 3, 0, 0]
    assert main(["compare", str(log)]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()]
    assert ["all", "tasks", "31/96", "=", "32.3%", "64/96", "=", "66.7%"] in rows
    assert ["task", "1", "17/24", "=", "70.8%", "14/24", "=", "58.3%"] in rows
    joined = " ".join(text.split())
    assert "+34.4 points" in joined and "shown: aligned is better at alpha 0.05" in joined
    assert "UNFINISHED" not in text and "NOT BLIND" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_study_fills_the_papers_table_of_the_robot(tmp_path, capsys):
    assert main(["table", str(paper_log(tmp_path)), "--json"]) == 0
    (robot,) = json.loads(capsys.readouterr().out)["tables"]
    rows = {(row["arm"], row["from"]): row["cells"] for row in robot["rows"]}
    published, measured = rows["base", "paper"], rows["base", "toy"]
    assert [round(cell["value"], 1) for cell in measured] == [cell["value"] for cell in published]
    assert [cell["n"] for cell in measured] == [24, 24, 24, 24, 96]
    assert rows["aligned", "toy"][-1]["value"] == pytest.approx(66.7, abs=0.04)
    assert "'task 0'" in robot["differs"][0] or "task 1 is" in robot["differs"][0]


def test_void_attempts_are_counted_by_arm_and_repeated_and_tested(tmp_path, capsys):
    _, plan, key = locked(tmp_path)

    def decide(arm, trial, attempt):
        """The base arm's rig fails at every first attempt of the task `lift`."""
        if arm == "base" and trial.task == "lift" and attempt == 1:
            return VOID
        return SUCCESS if arm == "base" else failure("grasped" if trial.task == "lift" else None)

    log = play(tmp_path, plan, key, decide)
    result = results_of(log, tmp_path / "toy.plan.json")
    base, aligned = result["arms"]["base"], result["arms"]["aligned"]
    assert (base["overall"]["successes"], base["overall"]["n"], base["attempts"]) == (8, 8, 12)
    assert base["void"] == {"robot or controller fault": 4} and aligned["void"] == {}
    assert (aligned["attempts"], aligned["failures"]) == (8, {"dropped it": 8})
    assert base["progress"] == {"lift": 1.0} and aligned["progress"] == {"lift": 2 / 3}
    (pair,) = result["comparisons"]
    assert (pair["only_before"], pair["only_after"], pair["p"]) == (8, 0, 2 / 2**8)
    assert pair["difference"] == -1.0 and pair["low"] == -1.0
    strict = pair["void_as_failures"]  # four of the pairs are then lost by both
    assert (strict["only_before"], strict["p"]) == (4, 2 / 2**4)
    assert pair["void_differs_p"] == fisher_exact([[8, 4], [8, 0]]).pvalue
    assert main(["compare", str(log)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "void: robot or controller fault 4 0" in text
    assert "shown: base is better" in text and "single tasks say little" in text


def test_an_unfinished_study_is_not_unblinded_unless_that_is_said_and_written(tmp_path, capsys):
    _, plan, key = locked(tmp_path)

    def decide(arm, trial, attempt):
        return SUCCESS if arm == "aligned" else failure()

    log = play(tmp_path, plan, key, decide, limit=5)
    before = log.read_bytes()
    assert main(["compare", str(log)]) == 2
    captured = capsys.readouterr()
    assert "5 of 16 trials are done" in captured.err and "--unfinished" in captured.err
    assert captured.out == "" and log.read_bytes() == before
    assert main(["compare", str(log), "--unfinished"]) == 0
    assert "UNFINISHED: 11 trials are left." in capsys.readouterr().out
    row = read_log(log)[-1]
    assert (row["event"], row["done"]) == ("unblinded", 5)
    result = results_of(log, tmp_path / "toy.plan.json", unfinished=True)
    assert result["comparisons"][0]["n"] == 2  # the fifth trial's block is not complete
    play(tmp_path, plan, key, decide)
    assert main(["compare", str(log)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "NOT BLIND TO THE END: unblinded after 5, 5 of 16 trials" in text


def test_an_attempt_under_way_is_no_result(tmp_path):
    _, plan, key = locked(tmp_path)
    log = play(tmp_path, plan, key, lambda *_: SUCCESS, limit=15)
    with TrialLog(log, plan.sha256) as writer:
        AskedDesk(plan, writer).start(16, 1, "Ada")
    with pytest.raises(RoboAlignError, match="15 of 16 trials are done"):
        results_of(log, tmp_path / "toy.plan.json")


def test_three_arms_are_corrected_for_their_comparisons(tmp_path):
    arms = {name: f"ws://127.0.0.1:{9000 + i}" for i, name in enumerate(("base", "sft", "rl"))}
    _, plan, key = locked(tmp_path, arms=arms, trials=10)

    def decide(arm, trial, attempt):
        wins = {"base": 0, "sft": 2, "rl": 3}[arm]
        return SUCCESS if trial.block % 4 < wins else failure()

    result = results_of(play(tmp_path, plan, key, decide), tmp_path / "toy.plan.json")
    pairs = result["comparisons"]
    assert [(p["before"], p["after"]) for p in pairs] == [
        ("base", "sft"),
        ("base", "rl"),
        ("sft", "rl"),
    ]
    # Blocks 1..20: 10 with block % 4 in (0, 1), 5 with 2.
    assert [(p["only_before"], p["only_after"]) for p in pairs] == [(0, 10), (0, 15), (0, 5)]
    expected = [2 / 2**10, 2 / 2**15, 2 / 2**5]
    assert [p["p"] for p in pairs] == pytest.approx(expected)
    assert [p["p_holm"] for p in pairs] == holm([p["p"] for p in pairs])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--arm", "base"], "is compared alone"),
        (["--plan", "other.plan.json"], "the file does not exist"),
    ],
)
def test_what_a_log_does_not_take_is_refused(tmp_path, capsys, arguments, problem):
    log = paper_log(tmp_path)
    assert main(["compare", str(log), *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "--unfinished"]) == 2
    assert "for a log of trials" in capsys.readouterr().err
    nameless = log.rename(tmp_path / "log.txt")
    assert main(["compare", str(nameless)]) == 2
    assert "the plan of this log is not known" in capsys.readouterr().err
    assert main(["compare", str(nameless), "--plan", str(tmp_path / "toy.plan.json")]) == 0
