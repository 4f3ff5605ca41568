"""The pipeline on stub stages: what is skipped, moved aside, resumed and run side by side."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.state import read_state
from roboalign.run import scheduler as pipeline
from roboalign.run.load import load_recipe
from roboalign.run.observer import PlainLines
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run, by_name
from roboalign.run.stage import Context, Stage

Work = Callable[[Context], dict[str, Any]]


class Stubs:
    """Stages that record when they ran. `needs`: name -> names; `settings`, `work` and `exclusive` by name."""

    def __init__(self, needs: dict[str, tuple[str, ...]]) -> None:
        self.needs = needs
        self.settings: dict[str, dict[str, Any]] = {}
        self.work: dict[str, Work] = {}
        self.exclusive: set[str] = set()
        self.ran: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.threads: list[int] = []

    def stages(self) -> list[Stage]:
        return [self._stage(name, needs) for name, needs in self.needs.items()]

    def _stage(self, name: str, needs: tuple[str, ...]) -> Stage:
        settings, alone = self.settings.get(name, {}), name in self.exclusive
        seed = int(name[len("seed-")]) if name.startswith("seed-") else None
        return Stage(name, self._work, needs, settings, seed=seed, exclusive=alone)

    def _work(self, context: Context) -> dict[str, Any]:
        self.ran.append(context.name)
        self.events.append(("start", context.name))
        row = self.work.get(context.name, lambda context: {"samples": 3})(context)
        self.events.append(("end", context.name))
        return row

    def run(self, folder: Path, *names: str, parallel: int = 1) -> list[str]:
        """Run the named stages, or all; what actually ran."""
        self.ran, self.events, self.said = [], [], []
        recipe = Recipe(name="stub", parallel=parallel)
        Run(recipe, folder, self.stages(), PlainLines(self.said.append)).execute(names or None)
        return self.ran


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    """collect <- sft <- (rl, head) <- report."""
    stubs = Stubs(
        {
            "collect": (),
            "sft": ("collect",),
            "rl": ("sft",),
            "head": ("sft",),
            "report": ("rl", "head"),
        }
    )
    monkeypatch.setattr(pipeline, "limit_threads", stubs.threads.append)
    return stubs


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand in for the processes, so that the stubs share memory with the test."""
    monkeypatch.setattr(
        pipeline, "worker_pool", lambda workers, *begin: ThreadPoolExecutor(workers)
    )


def test_what_is_done_is_not_done_again(stubs: Stubs, tmp_path: Path) -> None:
    assert stubs.run(tmp_path) == list(stubs.needs)
    row = read_json(tmp_path / "sft" / "stage.json")
    assert (
        row["stage"] == "sft"
        and row["samples"] == 3
        and row["needs"] == ["collect"]
        and row["seconds"] >= 0
    )
    assert load_recipe(tmp_path / "recipe.yaml") == Recipe(name="stub", parallel=1)
    assert stubs.run(tmp_path) == []
    assert [line for line in stubs.said if "done before" in line] == [
        f"[{n}] done before, nothing to do" for n in stubs.needs
    ]


def test_weights_of_a_finished_stage_that_are_lost_or_cut_are_named(
    stubs: Stubs, tmp_path: Path
) -> None:
    weights = tmp_path / "sft" / "model" / "model.safetensors"

    def work(context: Context) -> dict[str, Any]:
        weights.parent.mkdir()
        weights.write_bytes(b"12345")
        return {}

    stubs.work["sft"] = work
    stubs.run(tmp_path)
    files = read_json(tmp_path / "sft" / "stage.json")["files"]
    assert files == {"model/model.safetensors": {"bytes": 5}}
    weights.write_bytes(b"1234")
    with pytest.raises(RoboAlignError) as cut:
        stubs.run(tmp_path)
    assert cut.value.problem == "it has 4 bytes, and 5 were written"
    weights.unlink()
    with pytest.raises(RoboAlignError) as lost:
        stubs.run(tmp_path)
    assert (lost.value.where, lost.value.problem) == (str(weights), "the file is missing")
    assert "remove the stage's folder" in lost.value.fix


def test_seconds_are_the_stages_and_not_its_training_loops(stubs: Stubs, tmp_path: Path) -> None:
    def work(context: Context) -> dict[str, Any]:
        time.sleep(0.1)
        return {"seconds": 77.0, "updates": 5}

    stubs.work["sft"] = work
    stubs.run(tmp_path)
    row = read_json(tmp_path / "sft" / "stage.json")
    assert 0.1 <= row["seconds"] < 70 and row["training_seconds"] == 77.0 and row["updates"] == 5
    assert "training_seconds" not in read_json(tmp_path / "rl" / "stage.json")


def test_a_changed_setting_moves_aside_what_depends_on_it_and_nothing_else(
    stubs: Stubs, tmp_path: Path
) -> None:
    stubs.work["rl"] = lambda context: {
        "file": (context.folder / "weights").write_text(f"{len(stubs.settings)}")
    }
    stubs.run(tmp_path)
    key = read_json(tmp_path / "rl" / "stage.json")["key"]
    stubs.settings["rl"] = {"learning_rate": 1.0}
    assert stubs.run(tmp_path) == ["rl", "report"]
    assert (tmp_path / "rl" / "weights").read_text() == "1"
    aside = tmp_path / f"rl.outdated-{key[:8]}-1"
    assert (aside / "weights").read_text() == "0" and read_json(aside / "stage.json")["key"] == key
    assert any("settings or inputs changed" in line and str(aside) in line for line in stubs.said)
    # Back to the first settings: the old result is kept, not taken up again, and nothing is overwritten.
    stubs.settings.clear()
    assert stubs.run(tmp_path) == ["rl", "report"]
    stubs.settings["rl"] = {"learning_rate": 1.0}
    assert stubs.run(tmp_path) == ["rl", "report"]
    assert sum(path.name.startswith("rl.outdated-") for path in tmp_path.iterdir()) == 3


def test_a_changed_first_stage_runs_everything_again(stubs: Stubs, tmp_path: Path) -> None:
    stubs.run(tmp_path)
    stubs.settings["collect"] = {"noise": 0.2}
    assert stubs.run(tmp_path, "collect", "sft") == ["collect", "sft"]
    assert stubs.run(tmp_path) == ["rl", "head", "report"]  # done, but of other inputs


def test_a_killed_stage_goes_on_in_its_folder(stubs: Stubs, tmp_path: Path) -> None:
    def killed(context: Context) -> dict[str, Any]:
        (context.folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    stubs.work["sft"] = killed
    with pytest.raises(KeyboardInterrupt):
        stubs.run(tmp_path)
    assert (tmp_path / "sft" / "started.json").exists() and not (
        tmp_path / "sft" / "stage.json"
    ).exists()
    stubs.work["sft"] = lambda context: {"found": (context.folder / "checkpoint").read_text()}
    assert stubs.run(tmp_path) == ["sft", "rl", "head", "report"]
    assert read_json(tmp_path / "sft" / "stage.json")["found"] == "half"


def test_a_killed_stage_of_other_settings_is_moved_aside(stubs: Stubs, tmp_path: Path) -> None:
    stubs.work["sft"] = lambda context: {}[context.name]
    with pytest.raises(KeyError):
        stubs.run(tmp_path)
    (tmp_path / "sft" / "checkpoint").write_text("half")
    stubs.work.clear()
    stubs.settings["sft"] = {"max_steps": 5}
    assert stubs.run(tmp_path, "sft") == ["sft"]
    assert not (tmp_path / "sft" / "checkpoint").exists()
    assert [p.read_text() for p in tmp_path.glob("sft.outdated-*/checkpoint")] == ["half"]


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_failure_surfaces_and_what_is_done_stays_done(
    stubs: Stubs, side_by_side: None, tmp_path: Path, parallel: int
) -> None:
    def broken(context: Context) -> dict[str, Any]:
        raise RoboAlignError("the loss is nan", where="rl, update 3", fix="lower rl.learning_rate")

    def slow(context: Context) -> dict[str, Any]:
        time.sleep(0.1)
        return {}

    stubs.work |= {"rl": broken, "head": slow}
    with pytest.raises(RoboAlignError, match="the loss is nan"):
        stubs.run(tmp_path, parallel=parallel)
    done = {name for name in stubs.needs if (tmp_path / name / "stage.json").exists()}
    assert done == ({"collect", "sft"} if parallel == 1 else {"collect", "sft", "head"})
    assert "report" not in stubs.ran
    stubs.work.clear()
    assert set(stubs.run(tmp_path, parallel=parallel)) == set(stubs.needs) - done


def test_independent_stages_run_at_the_same_time(
    stubs: Stubs, side_by_side: None, tmp_path: Path
) -> None:
    both = threading.Barrier(2, timeout=20)  # breaks where one waits for the other's end
    stubs.work |= dict.fromkeys(("rl", "head"), lambda context: {"place": both.wait()})
    ran = stubs.run(tmp_path, parallel=2)
    assert ran[:2] == ["collect", "sft"] and set(ran[2:4]) == {"rl", "head"} and ran[4] == "report"
    started = [line.split(" at ")[0] + line.split(",")[1] for line in stubs.said if " at " in line]
    assert sorted(started) == sorted(
        f"[{name}] started stage {number} of 5"
        for number, name in enumerate(("collect", "sft", "rl", "head", "report"), start=1)
    )


def test_no_more_stages_at_once_than_processes_and_an_exclusive_one_alone(
    stubs: Stubs, side_by_side: None, tmp_path: Path
) -> None:
    stubs.needs = {
        **{f"early-{n}": () for n in range(3)},
        "alone": (),
        **{f"late-{n}": () for n in range(3)},
    }
    stubs.exclusive = {"alone"}
    running, most, lock = set[str](), list[set[str]](), threading.Lock()

    def work(context: Context) -> dict[str, Any]:
        with lock:
            running.add(context.name)
            most.append(set(running))
        time.sleep(0.05)
        with lock:
            running.remove(context.name)
        return {}

    stubs.work = dict.fromkeys(stubs.needs, work)
    assert set(stubs.run(tmp_path, parallel=2)) == set(stubs.needs)
    assert max(map(len, most)) == 2
    assert {"alone"} in most and not any("alone" in names for names in most if len(names) > 1)


def test_threads_are_shared_out(
    stubs: Stubs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "cores", lambda: 8)
    monkeypatch.setattr(pipeline, "side_by_side", lambda asked: 3)
    stubs.exclusive = {"collect"}
    for name in ("collect", "sft"):
        Run(Recipe(name="stub"), tmp_path, stubs.stages()).do(name)
    assert stubs.threads == [8, 2]


def test_select(stubs: Stubs) -> None:
    stubs.needs = {
        "mix": (),
        "base": ("mix",),
        "tokenizer": (),
        "seed-0/sft": ("base",),
        "seed-1/sft": ("base",),
        "seed-0/eval/tokens/sft": ("seed-0/sft",),
        "seed-0/head/sft": ("seed-0/sft",),
        "seed-0/eval/rollouts/sft": ("seed-0/head/sft",),
    }
    run = Run(Recipe(name="x"), "nowhere", stubs.stages())
    assert run.select() == list(stubs.needs)
    assert run.select("mix") == ["mix"]
    assert run.select("sft") == ["mix", "base", "seed-0/sft", "seed-1/sft"]
    assert run.select("seed-1/sft") == ["mix", "base", "seed-1/sft"]
    assert run.select("seed-1") == ["mix", "base", "seed-1/sft"]
    assert run.select("head") == ["mix", "base", "seed-0/sft", "seed-0/head/sft"]
    assert run.select("eval/tokens") == ["mix", "base", "seed-0/sft", "seed-0/eval/tokens/sft"]
    assert set(run.select("eval")) == set(stubs.needs) - {"tokenizer", "seed-1/sft"}


@pytest.mark.parametrize("until", ["rl", "tokens", "hea", "seed-2", "", "seed-0/eval/tokens/rl"])
def test_a_stage_that_there_is_not_is_refused_with_those_that_there_are(
    stubs: Stubs, until: str
) -> None:
    stubs.needs = {"mix": (), "seed-0/head/sft": ("mix",), "seed-0/eval/tokens/sft": ("mix",)}
    with pytest.raises(RoboAlignError) as error:
        Run(Recipe(name="x"), "nowhere", stubs.stages()).select(until)
    assert error.value.problem == (
        f"stage `{until}` not found. Available: mix, seed-0/head/sft, seed-0/eval/tokens/sft"
    )


def test_a_plan_out_of_order_is_refused(stubs: Stubs) -> None:
    stubs.needs = {"sft": ("mix",), "mix": ()}
    with pytest.raises(AssertionError, match="which come later"):
        by_name(stubs.stages())


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"key": 3}', '{"key": "../../x"}'])
def test_a_damaged_note_of_a_begun_stage_is_one_message(tmp_path: Path, content: str) -> None:
    path = tmp_path / "started.json"
    path.write_text(content)
    with pytest.raises(RoboAlignError, match=r"started\.json"):
        read_state(path, pipeline.Started, pipeline.AGAIN)
    path.write_text('{"key": "0123456789abcdef"}')
    assert read_state(path, pipeline.Started)["key"] == "0123456789abcdef"
