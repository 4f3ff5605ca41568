"""The pipeline's stages in processes of their own: an error arrives whole, a death is named, the next run resumes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.core.progress import Progress
from roboalign.run.observer import Observer
from roboalign.run.recipe import Recipe
from roboalign.run.scheduler import Run
from roboalign.run.stage import Context, Stage

Work = Callable[[Context], dict[str, Any]]


def _nothing(context: Context) -> dict[str, Any]:
    return {}


def _broken(context: Context) -> dict[str, Any]:
    raise RoboAlignError("its file is cut", where="a.parquet", fix="roboalign mix")


def _killed(context: Context) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _counting(context: Context) -> dict[str, Any]:
    with Progress(context.name, total=3, interval=0) as progress:
        progress.advance(3, note="half a loss")
    return {"samples": 3}


def in_processes(folder: Path, work: Work, observer: Observer | None = None) -> None:
    recipe = Recipe(name="stub", parallel=2)
    stages = [Stage("collect", _nothing), Stage("sft", work, ("collect",))]
    Run(recipe, folder, stages, observer).execute()


def test_an_error_of_another_process_arrives_whole(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError) as error:
        in_processes(tmp_path, _broken)
    assert (error.value.problem, error.value.where, error.value.fix) == (
        "its file is cut",
        "a.parquet",
        "roboalign mix",
    )
    assert (tmp_path / "collect" / "stage.json").exists()


def test_a_process_that_dies_is_named_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RoboAlignError, match="stage sft: its process was killed") as error:
        in_processes(tmp_path, _killed)
    assert "run the same command again" in error.value.fix
    channel = multiprocessing.get_context("spawn").Queue()
    heard = Recorded(channel)
    in_processes(tmp_path, _counting, heard)
    assert heard.events == [
        ("run_started", ["sft"], ["collect"]),
        ("stage_started", "sft", 1, 1),
        ("stage_finished", "sft", 3),
        ("run_ended", tmp_path),
    ]
    updates = [channel.get(timeout=20) for _ in range(3)]  # of the stage's own process
    assert {update.stage for update in updates} == {"sft"}
    assert [update.done for update in updates] == [0, 3, 3]
    assert [update.note for update in updates] == ["", "half a loss", "done"]


class Recorded:
    """An observer that keeps what it is told, and takes the stages' progress through a queue."""

    def __init__(self, channel: "Queue[Any]") -> None:
        self.events: list[tuple[Any, ...]] = []
        self.queue = channel

    def run_started(self, stages_to_do: Sequence[Stage], done_before: Sequence[str]) -> None:
        names = [stage.name for stage in stages_to_do]
        self.events.append(("run_started", names, list(done_before)))

    def stage_started(self, name: str, number: int, total: int) -> None:
        self.events.append(("stage_started", name, number, total))

    def stage_finished(self, name: str, row: dict[str, Any]) -> None:
        self.events.append(("stage_finished", name, row["samples"]))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def run_ended(self, seconds: float, run_dir: Path) -> None:
        self.events.append(("run_ended", run_dir))

    def channel(self) -> "Queue[Any]":
        return self.queue
