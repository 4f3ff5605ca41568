"""The training: what is drawn and learned, crashes, both algorithms, and a kill."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file
from toy_rolls import CONFIG, TASKS, Rolls

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.online import groups as drawing
from roboalign.online.config import MOST_DRAWS, OnlineConfig
from roboalign.online.decisions import Decisions, Trajectory
from roboalign.online.groups import Counts, initial_state, roll_groups
from roboalign.online.improve import HeadLearner, densities, improve
from roboalign.online.train import WEIGHTS, publish
from roboalign.sim.rollout import EpisodeResult
from roboalign.vla.head_policy import HeadPolicy

Train = Callable[..., Any]


def without_times(folder: Path) -> list[dict[str, Any]]:
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.fixture(scope="module")
def rolled(
    make_policy: Callable[[], HeadPolicy], tmp_path_factory: pytest.TempPathFactory
) -> tuple[HeadPolicy, list[EpisodeResult]]:
    """A policy, and 16 of its rollouts from two initial states."""
    folder, policy, results = tmp_path_factory.mktemp("rolled"), make_policy(), []
    publish(HeadLearner.of(policy, CONFIG), folder)
    keys = [(task, 4 * 900 + member) for task in TASKS for member in range(8)]
    Rolls(make_policy(), folder, CONFIG)(keys, results.append)
    return policy, results


def test_what_is_kept_of_a_rollout(rolled: Any) -> None:
    """Rollouts of a group begin alike and differ by noise; masks end with success."""
    _, results = rolled
    assert len({result.success for result in results}) == 2, (
        "the toy is neither trivial nor hopeless"
    )
    first = [from_bytes(one.kept[0]) for one in results if one.task == TASKS[0] and one.seed < 3604]
    for one in first[1:]:
        assert torch.equal(one["states"], first[0]["states"])
        assert not torch.equal(one["after"], first[0]["after"])
    assert first[0]["states"].dtype == torch.float16
    seen = {int(from_bytes(look)["step"]) for one in results for look in one.kept}
    assert seen == {0, 1, 2, 3}
    for result in results:
        found = Trajectory.of(result)
        assert sum(found.executed) == result.steps and 0 < found.executed[-1] <= 3
        assert len(found.looks) == -(-result.steps // 3)
        assert "kept" not in result.record()
    decisions = Decisions([Trajectory.of(one) for one in results], torch.device("cpu"))
    assert decisions.executed.sum() == sum(one.steps for one in results)
    assert not decisions.executed[:, 3].any(), "the chunk's last action is never executed"


def test_ratios_are_exactly_one_before_the_first_step(rolled: Any) -> None:
    policy, results = rolled
    decisions = Decisions([Trajectory.of(one) for one in results], torch.device("cpu"))
    learner = HeadLearner.of(policy, CONFIG.model_copy(update={"learning_rate": 1e-3}))
    advantages = torch.where(torch.arange(len(decisions)) % 2 == 0, 1.0, -1.0)
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 10_000})
    generator = torch.Generator().manual_seed(0)
    old, *_ = densities(policy.head.eval(), decisions, range(len(decisions)), config, 4)
    found = improve(learner, decisions, advantages, config, steps=4, generator=generator)
    assert found["ratio"] == 1.0 and found["ratio_off"] == 0.0 and found["kl"] == 0.0
    assert found["clipped"] == 0.0 and found["drift"] < 1e-3
    new, *_ = densities(policy.head, decisions, range(len(decisions)), config, 4)
    better = (new - old).detach()
    assert better[advantages > 0].mean() > better[advantages < 0].mean()


def test_rollouts_of_other_weights_are_refused(rolled: Any) -> None:
    policy, results = rolled
    decisions = Decisions([Trajectory.of(one) for one in results], torch.device("cpu"))
    with torch.no_grad():
        policy.head.decoder[2].bias.add_(1.0)
    learner = HeadLearner.of(policy, CONFIG)
    with pytest.raises(RoboAlignError, match="log-densities differ by"):
        improve(
            learner,
            decisions,
            torch.ones(len(decisions)),
            CONFIG,
            steps=4,
            generator=torch.Generator().manual_seed(0),
        )


def scripted(outcomes: Callable[[int], list[bool | None]], asked: list[Any]) -> Any:
    """Rolls whose groups come out as said by the number of the initial state; None is a crash."""

    def roll(episodes: list[tuple[str, int]], finish: Callable[[EpisodeResult], None]) -> None:
        asked.append(list(episodes))
        for task, seed in reversed(episodes):
            number = 2 * (seed // 4 - CONFIG.first_seed) + TASKS.index(task)
            outcome = outcomes(number)[seed % 4]
            crash = "broke" if outcome is None else None
            finish(EpisodeResult(task, seed, bool(outcome), 0, crash, 0.0))

    return roll


def test_groups_of_equal_outcomes_are_drawn_again_and_crashes_leave_theirs() -> None:
    by_number = {
        0: [True] * 4,
        1: [True, False, None, False],
        2: [False] * 4,
        3: [None, None, None, True],
        4: [False, False, True, True],
    }
    asked: list[Any] = []
    counts = Counts()
    roll = scripted(by_number.__getitem__, asked)
    found = roll_groups(roll, TASKS, CONFIG, counts, lambda note: None)
    # 0 and 1; then one more at a time until a second one is mixed.
    assert [len(one) for one in asked] == [8, 4, 4, 4]
    assert counts == Counts(drawn=5, mixed=2, episodes=20, successes=4 + 1 + 1 + 2, crashes=4)
    assert found.found == 2 and [one.success for one in found.trajectories] == [
        *(True, False, False),
        *(False, False, True, True),
    ]
    assert found.advantages == pytest.approx([1, -0.5, -0.5, -2 / 3, -2 / 3, 2 / 3, 2 / 3])
    seeds = {(task, seed // 4) for one in asked for task, seed in one}
    assert seeds == {initial_state(number, TASKS, CONFIG) for number in range(5)}
    assert {seed for _, seed in seeds} <= set(CONFIG.seeds(len(TASKS)))


def test_the_draws_are_bounded_and_ppo_takes_every_group() -> None:
    asked: list[Any] = []
    counts = Counts()
    roll = scripted(lambda number: [True] * 4, asked)
    assert not roll_groups(roll, TASKS, CONFIG, counts, lambda note: None).trajectories
    assert counts.drawn == MOST_DRAWS * CONFIG.groups and not counts.mixed
    ppo, counts = CONFIG.model_copy(update={"algorithm": "ppo"}), Counts()
    found = roll_groups(roll, TASKS, ppo, counts, lambda note: None)
    assert counts.drawn == 2 and len(found.trajectories) == 8
    with pytest.raises(RoboAlignError, match="all 8 rollouts crashed, the first by: broke"):
        broken = scripted(lambda number: [None] * 4, [])
        roll_groups(broken, TASKS, CONFIG, Counts(), lambda note: None)


@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_a_killed_training_ends_with_the_same_numbers(
    train: Train, tmp_path: Path, algorithm: str
) -> None:
    """SIGKILL in the rollouts of the second update, then the same again."""
    config = CONFIG.model_copy(update={"algorithm": algorithm})
    whole = train(tmp_path / "whole", config)
    kept = load_file(tmp_path / "whole/policy/head.safetensors")
    torn = tmp_path / "torn"
    child = os.fork()
    if child == 0:
        second = len(without_times(tmp_path / "whole"))  # calls of `roll` may be more than updates
        assert second == 2

        def wait(calls: int) -> None:
            if len(read_jsonl(torn / "metrics.jsonl")) == 1:
                time.sleep(60)

        train(torn, config, after=wait)
        os._exit(1)
    while len(read_jsonl(torn / "metrics.jsonl")) < 1 or not (torn / "checkpoint.pt").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it waits to be killed"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    again = train(torn, config)
    assert again.calls < whole.calls, "the first update is not done again"
    assert without_times(torn) == without_times(tmp_path / "whole")
    for name, value in load_file(torn / "policy/head.safetensors").items():
        assert torch.equal(value, kept[name]), name
    rows = without_times(torn)
    assert [row["step"] for row in rows] == [1, 2] and rows[0]["ratio_off"] > 0
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert ("value_loss" in rows[0]) == (algorithm == "ppo")
    assert rows[-1]["episodes"] == again.ledger["episodes"]
    assert not (torn / WEIGHTS).exists()


def test_a_crash_is_no_failure_and_other_settings_are_refused(train: Train, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"updates": 1, "algorithm": "ppo"})
    first = 4 * config.first_seed
    made = train(tmp_path / "a", config, crashes=[first, first + 1])
    [row] = without_times(tmp_path / "a")
    assert (row["rollouts"], row["crashes"]) == (8, 4)  # of both tasks
    assert row["success"] == made.ledger["successes"] / 4
    with pytest.raises(RoboAlignError, match="the checkpoint is of other settings"):
        train(tmp_path / "a", config.model_copy(update={"noise": 0.3}))


def test_nothing_to_learn_is_said_and_leaves_the_head_as_it_was(
    train: Train, tmp_path: Path, make_policy: Any, monkeypatch: Any, capsys: Any
) -> None:
    """Every group has equal outcomes: the draws end, and the policy is saved all the same."""
    monkeypatch.setattr(drawing, "MOST_DRAWS", 1)
    config = OnlineConfig(updates=1, groups=1, group_size=2)
    made = train(tmp_path / "a", config, radius=1.0)
    assert made.ledger["mixed"] == 0 and made.ledger["successes"] == 2
    assert "no group of 1 had both a success and a failure" in capsys.readouterr().err
    weights = load_file(tmp_path / "a/policy/head.safetensors")
    for name, value in make_policy().head.state_dict().items():
        assert torch.equal(value, weights[name])
