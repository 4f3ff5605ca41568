"""Trackers get what metrics.jsonl gets, once, over any number of resumed sessions, and never stop a training."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from roboalign.core import trackers
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json, read_jsonl
from roboalign.core.trackers import check_trackers, record_metrics, tracking


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1 / step, "answers": 4 * step, **more}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds: name -> (step, value) in the order of writing."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(event.step, float(event.tensor_proto.float_val[0])) for event in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }


class Fake:
    """What wandb and trackio are asked for: `init`, and on its run `log` and `finish`."""

    def __init__(self) -> None:
        self.sessions: list[dict[str, Any]] = []
        self.broken = ""

    def init(self, **settings: Any) -> SimpleNamespace:
        self.fail("init")
        session: dict[str, Any] = {**settings, "logged": [], "finished": 0}
        self.sessions.append(session)

        def log(numbers: dict[str, float], step: int) -> None:
            self.fail("log")
            session["logged"].append((step, numbers))

        def finish() -> None:
            self.fail("finish")
            session["finished"] += 1

        return SimpleNamespace(log=log, finish=finish)

    def fail(self, call: str) -> None:
        if self.broken == call:
            raise ConnectionError("no network")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    made = {"wandb": Fake(), "trackio": Fake()}
    for name, fake in made.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return made


def test_tensorboard_files_hold_the_records(tmp_path: Path) -> None:
    metrics = tmp_path / "seed-0" / "rl" / "metrics.jsonl"
    with tracking(["tensorboard"], "demo", "seed-0/rl"):
        record_metrics(metrics, row(1, note="words", none=None, flag=True, reasons={"a": 1}))
        record_metrics(metrics, row(2))
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")  # resumed from step 1
    with tracking(["tensorboard"], "demo", "seed-0/rl"):
        record_metrics(metrics, row(2))
        record_metrics(metrics, row(3))
    assert scalars(metrics.parent) == {
        "loss": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))],
        "answers": [(1, 4.0), (2, 8.0), (3, 12.0)],
    }
    assert [one["step"] for one in read_jsonl(metrics)] == [1, 2, 3]


def test_a_resumed_session_continues_the_same_run(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    metrics = tmp_path / "seed-0" / "sft" / "metrics.jsonl"
    for steps in ((1, 2), (3,)):
        with tracking(["wandb", "trackio"], "demo", "seed-0/sft"):
            for step in steps:
                record_metrics(metrics, row(step))
    id = read_json(metrics.parent / "trackers.json")["id"]
    asked = {"project": "demo", "name": "seed-0/sft", "id": id, "resume": "allow"}
    for session in fakes["wandb"].sessions:
        assert asked.items() <= session.items()
    for session in fakes["trackio"].sessions:
        assert (session["project"], session["name"]) == ("demo", f"seed-0-sft-{id}")
    for fake in fakes.values():
        assert [session["finished"] for session in fake.sessions] == [1, 1]
        sent = [pair for session in fake.sessions for pair in session["logged"]]
        assert sent == [(step, {"loss": 1 / step, "answers": 4 * step}) for step in (1, 2, 3)]


def test_each_metrics_file_is_a_run_of_its_own(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    with tracking(["wandb"], "demo", "base"):
        record_metrics(tmp_path / "base" / "vision" / "metrics.jsonl", row(1))
        record_metrics(tmp_path / "base" / "pretrain" / "metrics.jsonl", row(1))
    first, second = fakes["wandb"].sessions
    assert (first["name"], second["name"]) == ("base/vision", "base/pretrain")
    assert first["id"] != second["id"]
    assert (first["finished"], second["finished"]) == (1, 1)


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_fails_warns_once_and_catches_up_later(
    tmp_path: Path, fakes: dict[str, Fake], capsys: pytest.CaptureFixture, call: str
) -> None:
    metrics = tmp_path / "sft" / "metrics.jsonl"
    fakes["wandb"].broken = call
    with tracking(["wandb", "trackio"], "demo", "sft"):
        for step in (1, 2):
            record_metrics(metrics, row(step))
    warned = [line for line in capsys.readouterr().err.splitlines() if line]
    assert warned == [
        "[sft] wandb failed (ConnectionError: no network); training continues without it, "
        "metrics.jsonl has all numbers"
    ]
    assert [step for step, _ in fakes["trackio"].sessions[0]["logged"]] == [1, 2]
    fakes["wandb"].broken = ""
    with tracking(["wandb", "trackio"], "demo", "sft"):
        record_metrics(metrics, row(3))
    sent = [step for session in fakes["wandb"].sessions for step, _ in session["logged"]]
    assert sent == [1, 2, 3]


def test_without_trackers_nothing_else_is_written(tmp_path: Path) -> None:
    record_metrics(tmp_path / "metrics.jsonl", row(1))
    with tracking([], "demo", "sft"):
        record_metrics(tmp_path / "metrics.jsonl", row(2))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_jsonl(tmp_path / "metrics.jsonl") == [row(1), row(2)]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    check_trackers(["tensorboard"])
    with pytest.raises(RoboAlignError) as refused:
        check_trackers(["tensorboard", "wandb"])
    assert refused.value.problem == "wandb is not installed"
    assert "pip install 'roboalign[wandb]'" in refused.value.fix
