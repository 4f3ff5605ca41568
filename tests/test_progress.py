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
