"""Open answers: what the judge is asked, its scores by hand, and that no verdict is asked for twice."""

import json
from pathlib import Path

import pytest
from bench_models import script, small_model
from made_sets import COUNT, picture

from roboalign.bench.judge import JUDGE_PROMPT, score_in
from roboalign.cli.main import main
from roboalign.core.files import read_json, read_jsonl
from roboalign.core.outcomes import Fault
from roboalign.questions.teacher.client import ChatClient, TeacherReply

JUDGE = ["--judge", "http://127.0.0.1:9/v1", "--judge-model", "judge-1"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Eight questions in a file of the user's own, and a model."""
    rows = []
    for number in range(COUNT):
        picture(number).save(tmp_path / f"{number}.png")
        rows.append(
            {
                "id": f"q{number}",
                "image": f"{number}.png",
                "question": f"What should the gripper do next? ({number})",
                "answer": "Move down.",
                "category": ("movement", "planning")[number % 2],
            }
        )
    (tmp_path / "r1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small_model(tmp_path / "one" / "model")
    return tmp_path


def bench(place: Path, *more: str, out: str = "out") -> int:
    model, data = str(place / "one" / "model"), f"robot_r1={place / 'r1.jsonl'}"
    fixed = ["--tasks", "robot_r1", "--preset", "official", "--data", data]
    return main(["bench", model, *fixed, "--out", str(place / out), *more])


def judged(patch: pytest.MonkeyPatch, texts: dict[str, str]) -> list[dict]:
    """Answer a request with the text of the question's number; the list returned holds the requests."""
    seen: list[dict] = []

    def ask(self: ChatClient, body: dict) -> TeacherReply | Fault:
        seen.append(body)
        prompt = body["messages"][0]["content"]
        number = prompt.partition("(")[2][0]
        if number not in texts:
            return Fault("http://judge", "no answer after 7 requests", "see that it is up")
        return TeacherReply(texts[number], "stop", "", 100, 20)

    patch.setattr(ChatClient, "ask", ask)
    return seen


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It agrees.\nScore: 3", 3.0),
        ("Score: 0", 0.0),
        ("**Score:** 2", 2.0),
        ("score = 1.5", 1.5),
        ("Score: 1 at first, but\nScore: 2", 2.0),
        ("Score: 2/3", 2.0),
        ("Score: 30", None),
        ("Score: 4", None),
        ("Score: 3.5", None),
        ("Three", None),
        ("", None),
    ],
)
def test_the_score_of_a_verdict(text: str, score: float | None) -> None:
    assert score_in(text) == score


def test_scores_by_hand(place, capsys, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: f"Down {question[-2]}")
    texts = {str(n): f"Because.\nScore: {n % 4}" for n in range(7)} | {"7": "I cannot say."}
    seen = judged(monkeypatch, texts)
    assert bench(place, *JUDGE) == 0
    printed = capsys.readouterr().out
    rows = read_jsonl(place / "out/one/robot_r1/asked.jsonl")
    # 0, 1, 2, 3, 0, 1, 2 of 3, and one without a score
    assert [row["score"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 1, 0, 1 / 3, 2 / 3, 0])
    assert [row["reason"] for row in rows] == ["ok"] * 7 + ["the judge gave no score"]
    assert "mean of 0 to 3 1.12" in printed and "1 unreadable: the judge gave no score" in printed
    assert [body["model"] for body in seen] == ["judge-1"] * 8 and seen[0]["temperature"] == 0
    assert seen[3]["messages"][0]["content"] == JUDGE_PROMPT.format(
        question="What should the gripper do next? (3)", reference="Move down.", answer="Down 3"
    )
    state = read_json(place / "out/one/robot_r1/task.json")
    assert state["judge"]["model"] == "judge-1" and len(state["judge"]["prompt"]) == 16
    assert bench(place, *JUDGE) == 0
    assert len(seen) == 8
    assert bench(place, *JUDGE[:3], "judge-2") == 2
    assert "`judge.model` judge-1 then, judge-2 now" in capsys.readouterr().err


def test_a_judge_that_stops_answering_costs_no_verdict(place, capsys, monkeypatch) -> None:
    script(monkeypatch, lambda question, images: "Down")
    few = judged(monkeypatch, {str(n): "Score: 1" for n in range(5)})
    assert bench(place, *JUDGE) == 2
    assert "no answer after 7 requests" in capsys.readouterr().err
    assert len(few) == 6 and len(read_jsonl(place / "out" / "judge.jsonl")) == 5
    rest = judged(monkeypatch, {str(n): "Score: 1" for n in range(8)})
    assert bench(place, *JUDGE) == 0
    assert len(rest) == 3
    assert [r["read"] for r in read_jsonl(place / "out/one/robot_r1/asked.jsonl")] == ["1 of 3"] * 8


def test_what_is_missing_is_said_before_any_work(place, capsys) -> None:
    assert bench(place) == 2
    assert "has open answers, which a judge scores" in capsys.readouterr().err
    assert bench(place, *JUDGE[:2], out="o2") == 2
    assert "give --judge-model too" in capsys.readouterr().err
    assert bench(place, "--judge", "ftp://x", "--judge-model", "m", out="o3") == 2
    assert "`url`" in capsys.readouterr().err
    arguments = ["bench", "builtin", "--tasks", "robot_r1", "--preset", "official", "--out", "x"]
    assert main(arguments) == 2
    assert "the questions of Robot-R1 Bench are not public" in capsys.readouterr().err
