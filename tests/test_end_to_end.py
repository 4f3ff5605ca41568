"""The whole command on the smoke recipe: an unbroken run, and one that is killed in four stages and started again.

kills.py kills it at random moments.

Both must end with the same weights, the same token metrics and the same episodes, to the last bit.
"""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_process import Command

from roboalign.core.files import hash_file, read_json, read_jsonl

RECIPE = Path(__file__).parents[1] / "recipes" / "smoke.yaml"
ARMS = ("sft", "roboalign", "blind")
# SFT is made long enough to be killed in its middle, after a checkpoint.
OVERRIDES = (
    f"arms=[{','.join(ARMS)}]",
    "sft.max_steps=30",
    "sft.save_every=3",
    "rollout.max_steps=8",
    "parallel=1",  # stages side by side are in test_pipeline_processes and test_distributed_pipeline
)
DEADLINE = 280.0  # seconds, for each start


def start(out: Path) -> Command:
    settings = [part for override in OVERRIDES for part in ("--set", override)]
    return Command("run", str(RECIPE), "--out", str(out), *settings)


def finish(command: Command) -> str:
    output = command.output(DEADLINE)
    assert command.process.exitcode == 0, output
    return output


def kill_when(command: Command, condition: Callable[[], bool]) -> str:
    until = time.monotonic() + DEADLINE
    try:
        while not condition():
            assert command.process.is_alive(), command.output(1)
            assert time.monotonic() < until
            time.sleep(0.01)
    except BaseException:
        command.end()
        raise
    # The command alone: its workers must end by themselves, and so close the pipe that is read here.
    command.process.kill()
    return command.output(60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, finish(start(out))


@pytest.fixture(scope="module")
def killed(
    whole: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[str]]:
    """A run that was killed in four stages, the output of the start that ended it, and what was done before it.

    Its demonstrations are copied: they would be done before the first kill.
    """
    out = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(whole[0] / "collect", out / "collect")
    kill_in(out, "mix")
    sft = out / "seed-0" / "sft"
    kill_when(start(out), lambda: (sft / "checkpoints" / "checkpoint-6").exists())
    assert (sft / "started.json").exists() and not (sft / "stage.json").exists()
    for stage in ("seed-0/rl", "seed-0/eval/rollouts/roboalign"):
        kill_in(out, stage)
    done = [read_json(path)["stage"] for path in out.rglob("stage.json")]
    return out, finish(start(out)), done


def kill_in(out: Path, stage: str) -> None:
    """Start the run and kill it as soon as this stage has begun. The shortest ones may just have ended by then."""
    assert not (out / stage).exists(), f"{stage} has begun before"
    kill_when(start(out), lambda: (out / stage / "started.json").exists())


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "seconds" not in key}


def rows(path: Path, *order: str) -> list[dict[str, Any]]:
    found = [without_time(row) for row in read_jsonl(path)]
    assert found, path
    return sorted(found, key=lambda row: [row[key] for key in order])


def test_the_last_start_repeats_nothing_that_was_done(
    killed: tuple[Path, str, list[str]],
) -> None:
    _, output, done = killed
    assert {"collect", "base", "seed-0/rl", "seed-0/head/roboalign"} <= set(done)
    for stage in done:
        assert f"[{stage}] done before, nothing to do" in output
    assert "Traceback" not in output


def test_killed_and_whole_runs_are_equal(
    whole: tuple[Path, str], killed: tuple[Path, str, list[str]]
) -> None:
    one, two = (made[0] / "seed-0" for made in (whole, killed))
    for stage in ("sft", "rl"):
        assert hash_file(one / stage / "model/model.safetensors") == hash_file(
            two / stage / "model/model.safetensors"
        )
        assert rows(one / stage / "metrics.jsonl", "step") == rows(
            two / stage / "metrics.jsonl", "step"
        )
    for arm in ARMS:
        assert hash_file(one / f"head/{arm}/policy/head.safetensors") == hash_file(
            two / f"head/{arm}/policy/head.safetensors"
        )
        assert rows(one / f"head/{arm}/metrics.jsonl", "step") == rows(
            two / f"head/{arm}/metrics.jsonl", "step"
        )
        episodes = rows(one / f"eval/rollouts/{arm}/episodes.jsonl", "task", "seed")
        assert episodes == rows(two / f"eval/rollouts/{arm}/episodes.jsonl", "task", "seed")
        assert [row["seed"] for row in episodes] == [1_000_000] and episodes[0]["crash"] is None
    for arm in ("sft", "roboalign"):
        metrics = [read_json(folder / f"eval/tokens/{arm}/metrics.json") for folder in (one, two)]
        costs = [without_time(one.pop("cost")) for one in metrics]
        assert metrics[0] == metrics[1] and costs[0] == costs[1]


def test_the_arms_differ(whole: tuple[Path, str]) -> None:
    """Equality above would mean little if every arm came out the same."""
    folder = whole[0] / "seed-0"
    stages = (whole[0] / "base", folder / "sft", folder / "rl")
    weights = {hash_file(stage / "model/model.safetensors") for stage in stages}
    heads = {hash_file(folder / f"head/{arm}/policy/head.safetensors") for arm in ARMS}
    assert len(weights) == 3 and len(heads) == 3


def test_the_report_stands_alone(whole: tuple[Path, str]) -> None:
    out, output = whole
    page = (out / "report" / "index.html").read_text()
    assert "door-unlock" in page and "RoboAlign" in page
    fetched = re.findall(r"""(?:src|href|poster|data)\s*=\s*["']?([^"'\s>]+)""", page)
    fetched += re.findall(r"url\(([^)]+)\)", page)
    assert fetched and all(
        address.strip("'\"").startswith(("data:", "#")) for address in fetched
    ), fetched
    assert "@import" not in page and str(out) not in page
    assert str((out / "report" / "index.html").resolve()) in output
    summary = read_json(out / "report" / "summary.json")
    assert set(summary["arms"]) == set(ARMS)
    assert len(read_json(out / "collect" / "experts.json")) == 3


def test_the_ledger_has_one_row_a_stage(whole: tuple[Path, str]) -> None:
    out, output = whole
    stages = {read_json(path)["stage"] for path in out.rglob("stage.json")}
    assert f"[run] {len(stages)} stages in" in output
    assert {"collect", "mix", "seed-0/rl", "seed-0/eval/rollouts/blind", "report"} <= stages
