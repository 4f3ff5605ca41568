"""`roboalign data questions`: as it is typed."""

import time
from pathlib import Path

import pytest
from data_episodes import make_episode
from own_process import Command
from vqa_made import GOOD, completion, listed, serving

from roboalign.cli.main import main
from roboalign.cli.questions import endpoint_of, refused_lines
from roboalign.conversations.conversation import read_conversations
from roboalign.core.files import read_json
from roboalign.episodes.rewrite import rewrite
from roboalign.episodes.robot_data import RobotData
from roboalign.questions.facts.motion import NO_AXES


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "made"
    made = [
        make_episode(task, seed=seed, steps=24)
        for task in ("puck-push", "drawer-open")
        for seed in range(3)
    ]
    rewrite(RobotData("made", "test", lambda: iter(made)), folder)
    return folder


def ask(data_set: Path, out: Path, *arguments: str) -> int:
    return main(
        ["data", "questions", str(data_set), "--space", "metaworld", "--out", str(out), *arguments]
    )


def test_by_states_from_a_data_set_with_a_simulator_all_types_are_asked(
    data_set, tmp_path: Path, capsys
) -> None:
    assert (
        ask(data_set, tmp_path / "q", "--count", "100", "--think-share", "0.3", "--seed", "3") == 0
    )
    printed = capsys.readouterr().out
    assert (
        "questions from 6 episodes" in printed
        and "gripper_trace:" in printed
        and "not asked:" in printed
    )
    manifest = read_json(tmp_path / "q" / "manifest.json")
    assert (
        manifest["settings"]["axes"] == ["right", "forward", "up"]
        and manifest["settings"]["think_share"] == 0.3
    )
    assert manifest["settings"]["source"] == {
        "path": str(data_set),
        "format": "lerobot",
        "read": [],
        "space": "metaworld",
    }
    assert set(manifest["types"]) >= {
        "next_movement",
        "gripper_trace",
        "gripper_cell",
        "subtask_now",
        "frame_order",
    }
    assert len(read_conversations(tmp_path / "q", "train")) == manifest["conversations"] > 80


def test_what_was_not_asked_is_told_by_reason_with_what_mends_it() -> None:
    refused = {
        f"next_movement: {NO_AXES.reason}": 3,
        f"displacement: {NO_AXES.reason}": 4,
        "the teacher refused": 5,
        "other: words": 1,
    }
    assert refused_lines(refused) == [
        f"  7 x {NO_AXES.reason} (--axes X,Y,Z): next_movement, displacement",
        "  5 x the teacher refused",
        "  1 x other: words",
    ]


def test_the_grid_is_that_of_the_points(data_set, tmp_path: Path) -> None:
    for grid in ("8", "64"):
        assert (
            ask(data_set, tmp_path / grid, "--count", "60", "--grid", grid, "--think-share", "0")
            == 0
        )
    cells = {
        grid: [
            int(n)
            for one in read_conversations(tmp_path / grid, "train")
            for turn in one.turns
            if turn.type == "gripper_cell"
            for n in turn.expected.split()
        ]
        for grid in ("8", "64")
    }
    assert cells["8"] and max(cells["8"]) < 8 <= max(cells["64"]) < 64


def test_so_many_images_of_each_episode(data_set, tmp_path: Path) -> None:
    assert ask(data_set, tmp_path / "q", "--frames", "3") == 0
    asked = [(one.episode_id, one.frame) for one in read_conversations(tmp_path / "q", "train")]
    assert len({episode for episode, _ in asked}) == 6 and {step for _, step in asked} <= {
        4,
        12,
        20,
    }
    assert read_json(tmp_path / "q" / "manifest.json")["settings"]["frames"] == 3


def test_so_many_questions_of_each_image(data_set, tmp_path: Path) -> None:
    for most in (1, 4):
        assert ask(data_set, tmp_path / str(most), "--count", "30", "--questions", str(most)) == 0
    one, four = (
        max(len(c.turns) for c in read_conversations(tmp_path / most, "train"))
        for most in ("1", "4")
    )
    assert (one, four) == (1, 4)


def test_the_endpoint_takes_the_timeout_and_the_retries() -> None:
    options = {
        "endpoint": "http://a/v1",
        "key_env": None,
        "concurrency": 2,
        "timeout": 7.5,
        "retries": 0,
    }
    endpoint = endpoint_of(options)
    assert (endpoint.timeout, endpoint.retries, endpoint.concurrency) == (7.5, 0, 2)


def test_axes_that_are_given_are_used(data_set, tmp_path: Path) -> None:
    arguments = ["--count", "30", "--axes", "forward,left,up", "--think-share", "0"]
    assert (
        ask(data_set, tmp_path / "given", *arguments)
        == ask(data_set, tmp_path / "known", "--count", "30")
        == 0
    )
    one, other = (
        read_json(tmp_path / name / "manifest.json")["shards"] for name in ("given", "known")
    )
    assert one != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--axes", "north,left,up"], "not three of"),
        (["--count", "0"], "--count is 0"),
        (["--horizon", "0"], "--horizon"),
        (["--frames", "0"], "--frames"),
        (["--grid", "3"], "--grid"),
        (["--questions", "0"], "--questions"),
        (
            ["--by", "teacher", "--endpoint", "http://a/v1", "--model", "m", "--timeout", "0"],
            "--timeout",
        ),
        (
            ["--by", "teacher", "--endpoint", "http://a/v1", "--model", "m", "--retries", "-1"],
            "--retries",
        ),
        (["--think-share", "2"], "--think-share"),
        (["--position", "-1"], "--position"),
        (["--dry-run"], "--by teacher"),
        (["--endpoint", "http://a/v1"], "--by teacher"),
        (["--by", "teacher"], "--endpoint is missing"),
        (["--by", "teacher", "--endpoint", "http://a/v1"], "--model is missing"),
        (["--by", "teacher", "--endpoint", "a/v1", "--model", "m"], "--endpoint: it is not"),
        (
            ["--by", "teacher", "--endpoint", "https://a/v1?key=3", "--model", "m"],
            "environment variable",
        ),
        (
            [
                "--by",
                "teacher",
                "--endpoint",
                "http://a/v1",
                "--model",
                "m",
                "--key-env",
                "NO_SUCH",
            ],
            "NO_SUCH is not set",
        ),
        (
            ["--by", "teacher", "--endpoint", "http://a/v1", "--model", "m", "--price-in", "-1"],
            "prices",
        ),
        (
            ["--by", "teacher", "--endpoint", "http://a/v1", "--model", "m", "--concurrency", "0"],
            "--concurrency",
        ),
        (["--camera", "wrist"], "no camera 'wrist'"),
    ],
)
def test_bad_input_is_one_message(
    data_set, tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    assert ask(data_set, tmp_path / "q", *arguments) == 2
    *_, error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and fix.startswith("  fix: ") and message in error + fix
    assert not (tmp_path / "q" / "manifest.json").exists()


def well(body: dict, number: int):
    return completion(listed({**GOOD[0], "answer": f"cup number {number}"}, GOOD[1]))


def test_a_dry_run_tells_the_cost_and_asks_nothing(data_set, tmp_path: Path, capsys) -> None:
    with serving(well) as server:
        teacher = ["--by", "teacher", "--endpoint", server.url, "--model", "m", "--count", "50"]
        assert (
            ask(
                data_set,
                tmp_path / "q",
                *teacher,
                "--price-in",
                "1000",
                "--price-out",
                "0",
                "--dry-run",
            )
            == 0
        )
        first = capsys.readouterr().out
        assert ask(data_set, tmp_path / "q", *teacher, "--dry-run") == 0
        assert not server.seen and not (tmp_path / "q").exists()
    assert first.startswith("50 requests, 0 of them answered before; the rest takes about ")
    tokens = int(first.split(" tokens in")[0].split()[-1].replace(",", ""))
    assert (
        10_000 < tokens < 50_000
        and "and 20,000 out" in first
        and f"price {tokens / 1000:.2f}" in first
    )
    assert "price not known" in capsys.readouterr().out


def test_by_a_teacher_the_key_is_sent_and_nowhere_written(
    data_set, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    refuse = (500, {}, b"sk-very-secret is a bad key")
    with serving(lambda body, number: well(body, number) if number > 3 else refuse) as server:
        teacher = [
            "--by",
            "teacher",
            "--endpoint",
            server.url,
            "--model",
            "m",
            "--key-env",
            "TEACHER_KEY",
        ]
        prices = ["--price-in", "10", "--price-out", "100"]
        assert (
            ask(data_set, tmp_path / "q", *teacher, *prices, "--count", "12", "--concurrency", "4")
            == 0
        )
        assert set(server.keys) == {"Bearer sk-very-secret"} and len(server.seen) == 16
    printed = capsys.readouterr()
    assert (
        "12 conversations with" in printed.out
        and "12 requests, 0 of them answered before" in printed.out
    )
    assert "counted by the endpoint: 1,200 tokens in and 240 out, price 0.04" in printed.out
    files = [path for path in (tmp_path / "q").rglob("*") if path.is_file()]
    assert len(files) >= 5 and not any(b"very-secret" in path.read_bytes() for path in files)
    assert "very-secret" not in printed.out + printed.err
    assert read_json(tmp_path / "q" / "manifest.json")["spent"]["replies"] == 12


def test_a_run_that_was_killed_repeats_no_paid_request(data_set, tmp_path: Path) -> None:
    hold = [True]

    def answer(body, number):
        if hold[0] and number >= 9:
            time.sleep(30)
        return well(body, number)

    out = tmp_path / "q"
    with serving(answer) as server:
        command = [
            "data",
            "questions",
            str(data_set),
            "--space",
            "metaworld",
            "--out",
            str(out),
            "--count",
            "30",
            "--by",
            "teacher",
            "--endpoint",
            server.url,
            "--model",
            "m",
            "--concurrency",
            "3",
        ]
        started = Command(*command)
        try:
            answers, end = out / "answers.jsonl", time.monotonic() + 120
            while time.monotonic() < end and (
                not answers.exists() or answers.read_bytes().count(b"\n") < 9
            ):
                time.sleep(0.02)
        finally:
            started.process.kill()
            started.output(60)
        assert answers.read_bytes().count(b"\n") == 9 and not (out / "manifest.json").exists()
        hold[0] = False
        server.seen.clear()
        assert main(command) == 0
        assert len(server.seen) == 30 - 9
        assert main(command) == 0 and len(server.seen) == 30 - 9
    assert read_json(out / "manifest.json")["conversations"] == 30
