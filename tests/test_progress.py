"""The progress line: what is counted, the estimate, and how often it is printed."""

import pytest

from roboalign.core import progress
from roboalign.core.progress import Progress, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.5, "1:00"),
        (95.2, "1:35"),
        (3599.5, "1:00:00"),
        (3725, "1:02:05"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_estimate_comes_from_this_runs_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("sft", total=100, start=60) as line:
        clock.now += 10
        line.advance(10, note="loss 0.41")
    lines = capsys.readouterr().err.splitlines()
    # 10 units in 10 s: the 30 that are left take 30 s. The 60 of the earlier run do not count.
    assert lines == [
        "[sft] 70/100  0:10 elapsed, 0:30 left  loss 0.41",
        "[sft] 70/100  0:10 elapsed, 0:30 left  done",
    ]


def test_a_line_every_interval_and_not_more_often(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("mix", total=100, interval=5.0) as line:
        for _ in range(100):
            clock.now += 0.2
            line.advance()
    assert len(capsys.readouterr().err.splitlines()) in (
        5,
        6,
    )  # 20 s: one at once, then every 5 s, and the last


def test_an_error_is_not_called_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), Progress("rl", total=3):
        raise ValueError("broken")
    assert capsys.readouterr().err == "[rl] 0/3  0:00 elapsed, ? left  stopped\n"


def test_ctrl_c_prints_no_line_of_its_own(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Progress("rl", total=3):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stage", "label", "start"),
    [
        ("", "data", "[data] 1/4  "),
        ("collect", "collect", "[collect] 1/4  "),
        ("seed-0/sft", "sft", "[seed-0/sft] 1/4  "),
        ("seed-0/head/roboalign", "features", "[seed-0/head/roboalign] features 1/4  "),
        ("seed-0/eval/tokens/sft", "tokens sft", "[seed-0/eval/tokens/sft] 1/4  "),
    ],
)
def test_a_line_names_its_stage(
    stage: str, label: str, start: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.of_stage(stage), Progress(label, total=4) as count:
        count.advance()
    assert capsys.readouterr().err.startswith(start)


def test_updates_go_to_the_channel_and_nothing_is_printed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[progress.Update] = []

    class Here:
        def put(self, update: progress.Update) -> None:
            taken.append(update)

    progress.send_to(Here())
    try:
        with progress.of_stage("mix"), Progress("mixture", total=10, start=2) as count:
            clock.now += 4
            count.advance(2, note="x")
    finally:
        progress.send_to(None)
    assert capsys.readouterr().err == ""
    assert [(u.done, u.fresh, u.elapsed, u.left, u.note, u.ended) for u in taken] == [
        (2, 0, 0.0, None, "", False),
        (4, 2, 4.0, 12.0, "x", False),
        (4, 2, 4.0, 12.0, "done", True),
    ]
    assert {update.stage for update in taken} == {"mix"}
