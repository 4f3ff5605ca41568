"""Plans: balance of the order, arms in the key alone, the same bytes from the same seed, no change after the lock."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare
from trial_studies import TASK, locked, study

from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.trial.plan import (
    CODE_LETTERS,
    content_sha256,
    draw_plan,
    lock_plan,
    read_key,
    read_plan,
    read_study,
)
from roboalign.trial.power import detectable

STUDY = """
name: toy
arms: {base: "ws://127.0.0.1:8001", aligned: "ws://127.0.0.1:8002"}
tasks:
  lift: {instruction: lift the cube, success: it is off the table, conditions: [a, b]}
  push: {instruction: push the cube, success: it is past the line}
"""


def within_one(counts):
    return max(counts) - min(counts) <= 1


@given(
    arms=st.integers(2, 4),
    trials=st.integers(1, 17),
    conditions=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_block_has_every_arm_and_places_and_conditions_are_balanced(
    arms, trials, conditions, seed
):
    names = [f"arm {i}" for i in range(arms)]
    task = TASK | {"conditions": [f"c{i}" for i in range(conditions)]}
    plan, key = draw_plan(
        study(
            arms={name: f"ws://127.0.0.1:{9000 + i}" for i, name in enumerate(names)},
            tasks={"one": task, "two": task},
            trials=trials,
            seed=seed,
        )
    )
    assert [trial.number for trial in plan.trials] == list(range(1, 2 * trials * arms + 1))
    rows = list(zip(plan.trials, key.assignment))
    places: Counter = Counter()
    for block in range(1, 2 * trials + 1):
        members = [(trial, arm) for trial, arm in rows if trial.block == block]
        assert sorted(arm for _, arm in members) == names
        assert len({(trial.task, trial.condition) for trial, _ in members}) == 1
        places.update((trial.task, i, arm) for i, (trial, arm) in enumerate(members))
    for task_name in ("one", "two"):
        assert within_one([places[task_name, i, arm] for i in range(arms) for arm in names])
        used = Counter(t.condition for t, _ in rows if t.task == task_name and t.block)
        assert within_one([used[f"c{i}"] // arms for i in range(conditions)])
    codes = [trial.code for trial in plan.trials]
    assert len(set(codes)) == len(codes) and set("".join(codes)) <= set(CODE_LETTERS)


def test_the_first_arm_of_a_block_is_a_fair_coin_and_its_code_says_nothing():
    """Over 400 seeds: which arm is first in the first block, and the first letter of its code."""
    first, letters = Counter(), Counter()
    for seed in range(400):
        plan, key = draw_plan(study(seed=seed))
        first[key.assignment[0]] += 1
        for trial, arm in zip(plan.trials, key.assignment):
            letters[arm, trial.code[0] < "N"] += 1
    assert chisquare([first["base"], first["aligned"]]).pvalue > 1e-3
    table = np.array([[letters[arm, low] for low in (False, True)] for arm in ("base", "aligned")])
    assert np.abs(table[0] - table[1]).max() < 4 * np.sqrt(table.sum() / 4)


def test_the_plan_names_no_arm_of_a_trial_and_no_address(tmp_path):
    path, plan, key = locked(tmp_path)
    text = path.read_text()
    assert "9001" not in text and "9002" not in text and "seed" not in text
    for arm in plan.arms:  # in the lists of arms and comparisons alone
        assert text.count(f'"{arm}"') == 2
    assert (tmp_path / "toy.key.json").stat().st_mode & 0o077 == 0
    assert (read_plan(path), read_key(path)) == (plan, key)
    assert json.loads(text)["sha256"] == plan.sha256


def test_the_same_seed_gives_the_same_files_and_no_seed_another_plan_each_time(tmp_path):
    path, *_ = locked(tmp_path)
    before = path.read_bytes(), (tmp_path / "toy.key.json").read_bytes()
    lock_plan(path, *draw_plan(study()))
    assert before == (path.read_bytes(), (tmp_path / "toy.key.json").read_bytes())
    unseeded = [draw_plan(study(seed=None))[0] for _ in range(2)]
    assert unseeded[0].sha256 != unseeded[1].sha256
    with pytest.raises(RoboAlignError, match="another plan is locked here"):
        lock_plan(path, *draw_plan(study(seed=2)))
    assert before == (path.read_bytes(), (tmp_path / "toy.key.json").read_bytes())


def test_any_change_is_refused(tmp_path):
    path, plan, _ = locked(tmp_path)
    key_file = tmp_path / "toy.key.json"
    for file, read in ((path, read_plan), (key_file, read_key)):
        good = file.read_text()
        for old, new in {"base": "vase", '"lift"': '"lifd"', "[": "[ ", '": 1': '": 2'}.items():
            if old == "[" or old not in good:
                continue
            file.write_text(good.replace(old, new, 1))
            with pytest.raises(RoboAlignError, match="changed after it was locked"):
                read(path)
        file.write_text(good)
    # A swapped pair with a new sha of its own: the plan does not know this key.
    content = json.loads(key_file.read_text())
    del content["sha256"]
    content["assignment"][:2] = content["assignment"][1::-1]
    key_file.write_text(json.dumps(content | {"sha256": content_sha256(content)}))
    with pytest.raises(RoboAlignError, match="key of another plan"):
        read_key(path)
    assert read_plan(path) == plan
    path.write_text('{"a": 1}')
    with pytest.raises(RoboAlignError, match="it has no sha256"):
        read_plan(path)


def test_the_command_prints_the_numbers_and_locks(tmp_path, capsys):
    source = tmp_path / "toy.yaml"
    source.write_text(STUDY + "power: {difference: 0.3}\nseed: 5\n")
    assert main(["trial", "plan", str(source), "--dry-run"]) == 0
    assert not (tmp_path / "toy.plan.json").exists()
    assert main(["trial", "plan", str(source)]) == 0
    said = capsys.readouterr().out
    # By the enumeration in test_power.py: 52 pairs, 26 of each of two tasks.
    assert "26 trials of each task and arm, 104 in all" in " ".join(said.split())
    assert "power 0.816 (asked for 0.8)" in said and "54.5% of pairs" in said
    plan = read_plan(tmp_path / "toy.plan.json")
    assert f"sha256: {plan.sha256}" in said and len(plan.trials) == 104


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (STUDY, "either `trials` or `power`"),
        (STUDY + "trials: 3\npower: {difference: 0.3}", "either `trials` or `power`"),
        (STUDY + "trials: 0", "`trials`"),
        (STUDY + "trails: 3", "unknown key `trails`"),
        (STUDY.replace("8002", "8001") + "trials: 3", "one address"),
        (STUDY.replace("ws://127.0.0.1:8002", "127.0.0.1:8002") + "trials: 3", "arms.aligned"),
        (STUDY.replace("[a, b]", "[a, a]") + "trials: 3", "'a' is there twice"),
        (STUDY.replace("success: it is off the table, ", "") + "trials: 3", "tasks.lift.success"),
        (STUDY + "trials: 3\ncomparisons: [[base, other]]", "are not two of `arms`"),
        (STUDY.replace("[a, b]", "[a, b], pictures: {c: c.png}") + "trials: 3", "not one of `cond"),
        (STUDY + "power: {difference: 0.3, discordant: 0.2}", "at least `difference`"),
    ],
)
def test_a_wrong_study_is_one_message_that_names_the_key(tmp_path, text, problem):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(RoboAlignError, match=r"study\.yaml") as error:
        read_study(path)
    assert problem in str(error.value)


def test_the_study_of_the_docs_has_the_numbers_that_they_say(tmp_path, capsys):
    page = (Path(__file__).parents[2] / "docs/how-to/run-robot-trials.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "franka.yaml"
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/A1.jpg")
    path.write_text(text)
    assert main(["trial", "plan", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "".join(f"    {line}\n" for line in said.splitlines()) in page
    for pairs, found in ((96, "96 pairs detect 21.2 points"), (24, "detect 44.1 points")):
        assert f"{100 * detectable(pairs, 0.05, 0.8):.1f} points" in found
        assert found in " ".join(page.split())
