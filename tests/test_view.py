"""The live view of a run, as a terminal of 80 columns shows it, and the estimate of the whole run in it."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from roboalign.core import progress
from roboalign.core.progress import Progress, Update
from roboalign.run import forecast, view
from roboalign.run.forecast import Forecast, kind_of, reference_seconds
from roboalign.run.view import LiveView


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True)
class One:
    name: str
    needs: tuple[str, ...] = ()
    exclusive: bool = False


STAGES = [
    One("collect"),
    One("mix", ("collect",)),
    One("seed-0/sft", ("mix",)),
    One("seed-0/rl", ("seed-0/sft",)),
    One("seed-0/head/sft", ("seed-0/sft",)),
    One("seed-0/head/roboalign", ("seed-0/rl",)),
    One("report", ("seed-0/head/sft", "seed-0/head/roboalign")),
]


TABLE = {
    "collect": 111,
    "mix": 2,
    "sft": 257,
    "rl": 167,
    "head": 69,
    "eval/tokens": 15,
    "eval/rollouts": 60,
    "report": 10,
}
"""Seconds of the quickstart's stages for these tests, so that a later measurement changes none."""


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboalign.run.forecast.QUICKSTART_SECONDS", TABLE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (forecast, view):
        monkeypatch.setattr(module, "time", clock)
    return clock


def terminal(width: int = 80) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    return Console(force_terminal=True, width=width, height=40, file=file, color_system=None)


@pytest.fixture
def shown(clock: Clock) -> Iterator[LiveView]:
    """A view of STAGES, one at a time, whose screen is not refreshed by a thread."""
    live = LiveView(1, terminal())
    live.forecast = Forecast(STAGES, 1)
    live.began = clock.now
    yield live
    live.close()


def screen(live: LiveView) -> list[str]:
    console = terminal(live.console.width)
    with console.capture() as capture:
        console.print(live.render())
    return [line.rstrip() for line in capture.get().splitlines()]


def counted(stage: str, done: int, total: int | None, elapsed: float, **more: Any) -> Update:
    fields: dict[str, Any] = {
        "label": stage.split("/")[-1],
        "fresh": done,
        "note": "",
        "ended": False,
    } | more
    return Update(stage=stage, done=done, total=total, elapsed=elapsed, **fields)


def run_until_sft(live: LiveView, clock: Clock) -> None:
    """collect took 222 s and mix 4 s, twice the quickstart's; sft has run for 60 s and is at 100 of 800."""
    live.stage_started("collect", 1, 7)
    clock.now += 222
    live.stage_finished("collect", {"seconds": 222.0})
    live.stage_started("mix", 2, 7)
    clock.now += 4
    live.stage_finished("mix", {"seconds": 4.0})
    live.stage_started("seed-0/sft", 3, 7)
    clock.now += 60
    live.put(counted("seed-0/sft", 100, 800, 60.0, note="loss 0.41"))


def test_nothing_is_known_at_the_start(shown: LiveView) -> None:
    assert screen(shown) == [
        "run: 0 of 7 stages done, 0:00 elapsed, estimating the rest",
        "· collect",
        "· mix",
        "· seed-0/sft",
        "· seed-0/rl",
        "· head, 2 stages",
        "· report",
    ]


def test_done_running_and_waiting(shown: LiveView, clock: Clock) -> None:
    run_until_sft(shown, clock)
    # Twice the quickstart's seconds: 2 x 257 - 60 of sft, 2 x 167 of rl, 2 x 2 x 69 of the heads, 2 x 10 of the report.
    assert screen(shown) == [
        "run: 2 of 7 stages done, 4:46 elapsed, about 18:04 left",
        "✓ collect                                                                3:42",
        "✓ mix                                                                    0:04",
        "▸ seed-0/sft                         ━╸               100/800 1:00, 7:34 left",
        "· seed-0/rl                                                        about 5:34",
        "· head, 2 stages                                                   about 4:36",
        "· report                                                           about 0:20",
    ]


def test_a_stage_without_a_count_or_a_total_has_an_estimate_too(
    shown: LiveView, clock: Clock
) -> None:
    run_until_sft(shown, clock)
    clock.now += 455
    shown.stage_finished("seed-0/sft", {"seconds": 515.0})
    shown.stage_started("seed-0/rl", 4, 7)
    shown.stage_started("seed-0/head/sft", 5, 7)
    clock.now += 10
    shown.put(counted("seed-0/head/sft", 12, None, 8.0, label="features"))
    # Now 737 s of this run are 368 of the quickstart's.
    assert screen(shown)[4:7] == [
        "▸ seed-0/rl                                                   0:10, 5:24 left",
        "▸ seed-0/head/sft features                                 12 0:10, 2:08 left",
        "· head, 2 stages                                                   about 2:18",
    ]


def test_the_end(shown: LiveView, clock: Clock, tmp_path: Path) -> None:
    shown.done_before = 2
    for number, (stage, seconds) in enumerate(zip(STAGES, (60, 1, 90, 80, 30, 31, 4), strict=True)):
        shown.stage_started(stage.name, number, 7)
        shown.stage_finished(stage.name, {"seconds": float(seconds)})
    shown.run_ended(3725.0, tmp_path)
    assert screen(shown) == [
        "run: 7 stages in 1:02:05 (2 were done before)",
        "✓ collect                                                                1:00",
        "✓ mix                                                                    0:01",
        "✓ seed-0/sft                                                             1:30",
        "✓ seed-0/rl                                                              1:20",
        "✓ head, 2 stages                                                         1:01",
        "✓ report                                                                 0:04",
    ]


def test_no_line_is_wider_than_the_terminal(shown: LiveView, clock: Clock) -> None:
    long = "seed-0/head/a-name-that-is-longer-than-the-column-for-names"
    shown.forecast = Forecast([One(long), *STAGES], 1)
    shown.stage_started(long, 1, 8)
    clock.now += 36_000
    shown.put(counted(long, 123_456, 1_000_000, 36_000.0, note="loss 0.41"))
    assert max(map(len, screen(shown))) <= 80
    assert "10:00:00, 71:00:02" in screen(shown)[1]


def test_a_wide_terminal_shows_the_notes(clock: Clock) -> None:
    wide = LiveView(1, terminal(width=120))
    wide.forecast = Forecast(STAGES, 1)
    run_until_sft(wide, clock)
    assert screen(wide)[3].endswith("1:00, 7:34 left loss 0.41")


def test_lines_of_a_stage_are_above_the_view_and_whole(clock: Clock, tmp_path: Path) -> None:
    """What a stage says while the view is shown: nothing of it is taken for markup, and no count is printed."""
    console = terminal()
    live = LiveView(1, console)
    live.run_started(STAGES[:2], ["base"])
    try:
        with progress.of_stage("seed-0/sft"), Progress("sft", total=4) as count:
            progress.say("resuming from [/tmp/run]/checkpoint-2 (update 2) :smile:", "sft")
            count.advance(2)
    finally:
        live.run_ended(3.0, tmp_path)
    console.file.flush()
    buffer = console.file.buffer  # type: ignore[attr-defined]
    written = buffer.getvalue().decode()
    assert "[seed-0/sft] resuming from [/tmp/run]/checkpoint-2 (update 2) :smile:" in written
    assert "elapsed, ? left" not in written
    assert live.forecast.updates["seed-0/sft"].done == 2


def test_the_estimate_plays_the_schedule(clock: Clock) -> None:
    """Two at once: the heads run side by side after what they need, and an exclusive stage alone."""
    stages = [
        One("collect"),
        One("seed-0/sft", ("collect",), exclusive=True),
        One("seed-0/rl", ("collect",)),
        One("seed-0/head/sft", ("seed-0/sft",)),
        One("seed-0/head/roboalign", ("seed-0/rl",)),
    ]
    plan = Forecast(stages, 2)
    plan.start("collect")
    assert plan.left() is None
    clock.now += 111
    plan.finish("collect", 111.0)
    # The quickstart's own pace: sft alone (257), then rl (167) with one head (69), then the other head (69).
    assert plan.left() == pytest.approx(257 + 167 + 69)
    plan.start("seed-0/sft")
    clock.now += 200
    plan.finish("seed-0/sft", 200.0)
    # 311 s were 368 of the table; the rest takes as much less.
    assert plan.left() == pytest.approx((167 + 69) * 311 / 368)


def test_a_count_that_is_slower_than_the_table_wins(clock: Clock) -> None:
    plan = Forecast([One("collect"), One("seed-0/sft", ("collect",))], 1)
    plan.finish("collect", 111.0)
    plan.start("seed-0/sft")
    clock.now += 100
    plan.updates["seed-0/sft"] = counted("seed-0/sft", 10, 100, 100.0)
    assert plan.left_of("seed-0/sft") == pytest.approx(900)
    plan.updates["seed-0/sft"] = counted("seed-0/sft", 90, 100, 100.0)
    assert plan.left_of("seed-0/sft") == pytest.approx(157)  # 257 - 100: what follows the count


def test_before_a_stage_is_done_the_first_count_tells_the_pace(clock: Clock) -> None:
    plan = Forecast([One("collect"), One("seed-0/rl", ("collect",))], 1)
    plan.start("collect")
    clock.now += 50
    plan.updates["collect"] = counted("collect", 25, 100, 50.0)
    # collect takes 200 s here, 111 in the table.
    assert plan.left() == pytest.approx(150 + 167 * 200 / 111)


@pytest.mark.parametrize(
    ("name", "kind", "seconds"),
    [
        ("collect", "collect", 111),
        ("seed-1/eval/tokens/sft", "eval/tokens", 15),
        ("seed-0/head/roboalign", "head", 69),
        ("seed-0/language-sft", "language-sft", 257),
        ("seed-0/trajectory-rl", "trajectory-rl", 167),
        ("mix-language", "mix-language", 69),
    ],
)
def test_kinds_of_stages(name: str, kind: str, seconds: float) -> None:
    assert kind_of(name) == kind
    assert reference_seconds(kind) == seconds
