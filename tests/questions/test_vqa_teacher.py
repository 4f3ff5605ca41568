"""A teacher's questions, from an endpoint that answers, refuses, fails and is killed on."""

import base64
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from vqa_made import GOOD, ROS, completion, data_of, listed, serving, straight

from roboalign.conversations.conversation import read_conversations
from roboalign.core.errors import RoboAlignError
from roboalign.questions.base import Made, QuestionConfig, Work
from roboalign.questions.facts.motion import Motion
from roboalign.questions.teacher.cache import AnswerCache
from roboalign.questions.teacher.client import ChatClient, Endpoint
from roboalign.questions.teacher.questions import (
    TeacherQuestions,
    estimate,
    price,
    read_ahead,
    teacher_prompt,
)
from roboalign.questions.write import write_questions

CONFIG = QuestionConfig(axes=ROS, questions=3)


@contextmanager
def teacher(url: str, folder: Path, config: QuestionConfig = CONFIG, **given):
    settings = {
        "url": url,
        "retries": 1,
        "first_wait": 0.01,
        "timeout": 10.0,
        "concurrency": 4,
        **given,
    }
    client, cache = ChatClient(Endpoint(**settings)), AnswerCache(folder / "answers.jsonl")
    try:
        yield TeacherQuestions(config, "teach-1", client, cache)
    finally:
        client.close()
        cache.close()


def work(episodes: int = 3, frames: int = 4) -> list[Work]:
    return [Work(straight((0, -0.01, 0), number=n), tuple(range(frames))) for n in range(episodes)]


def number_of(body: dict) -> str:
    """A word of its own for each image, so that no question is asked twice."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64encode(url[-60:-30].encode()).decode().strip("=")


def well(body: dict, number: int):
    one = {**GOOD[0], "answer": f"cup {number_of(body)}"}
    return completion(f"```json\n{listed(one, GOOD[2])}\n```")


def test_the_request_holds_the_image_the_task_and_what_is_known(tmp_path: Path) -> None:
    made = straight((0, -0.01, 0))
    with serving(well) as server, teacher(server.url, tmp_path) as asked:
        list(asked.questions([Work(made, (4,))]))
    body = server.seen[0]
    image, text = body["messages"][0]["content"]
    assert body["model"] == "teach-1" and body["path"] == "/v1/chat/completions"
    head, data = image["image_url"]["url"].split(",")
    (tmp_path / "seen.png").write_bytes(base64.b64decode(data))
    from PIL import Image

    np.testing.assert_array_equal(
        np.array(Image.open(tmp_path / "seen.png")), made.frame("front", 4)
    )
    assert head == "data:image/png;base64" and "put the cup on the plate." in text["text"]
    assert (
        "The gripper is open. The subtask is reach. The gripper should move right." in text["text"]
    )
    assert "Nothing else is known" in teacher_prompt(
        Motion(straight((0, 0, 0), space=None), CONFIG), 4
    )


def test_questions_come_in_the_order_of_the_frames_whatever_comes_first(tmp_path: Path) -> None:
    def uneven(body, number):
        time.sleep(0.05 if number % 3 == 0 else 0)
        return well(body, number)

    with serving(uneven) as server, teacher(server.url, tmp_path) as asked:
        made = list(asked.questions(work()))
        assert 2 <= server.most <= 4 and len(server.seen) == 12
        assert asked.spent() == {"replies": 12, "prompt_tokens": 1200, "completion_tokens": 240}
    ids = [one.id for each in made for one in each.conversations]
    assert ids == [f"teacher/made/{n}/{t}" for n in range(3) for t in range(4)]
    turns = [turn for each in made for one in each.conversations for turn in one.turns]
    assert {turn.mode for turn in turns if turn.type == "point"} == {
        "direct"
    }  # no reasoning was written
    assert {turn.mode for turn in turns if turn.type == "text"} == {"direct", "think"}
    thought = next(turn for turn in turns if turn.mode == "think")
    assert (
        thought.answer
        == f"<think>A cup stands there.</think><answer>answer {thought.expected}</answer>"
    )
    again = [refused.reason for each in made for refused in each.refused]
    assert (
        again == ["a question is asked twice in one episode"] * 9
    )  # the same point in each frame of an episode


def test_refusals_are_counted_by_reason_and_only_so_many_questions_kept(tmp_path: Path) -> None:
    answers = [
        completion(None, refusal="I cannot"),
        completion("", "content_filter"),
        completion("cut {", "length"),
        completion("I see a cup."),
        completion(listed({**GOOD[0], "answer": ""}, GOOD[1])),
        completion(listed(*[{**GOOD[0], "answer": f"cup number {n}"} for n in range(9)])),
    ]
    with (
        serving(lambda body, number: answers[number]) as server,
        teacher(server.url, tmp_path, concurrency=1) as asked,
    ):
        (made,) = asked.questions(work(1, 6))
    assert [refused.reason for refused in made.refused] == [
        "the teacher refused",
        "the teacher refused",
        "the teacher's answer was cut at its token limit",
        "the teacher's answer holds no JSON list of questions",
        "a question or answer is empty",
    ]
    assert [len(one.turns) for one in made.conversations] == [1, 3] and not made.faults


def test_one_frame_that_fails_is_a_fault_and_a_dead_endpoint_ends_the_run(tmp_path: Path) -> None:
    poison = []

    def failing(body, number):
        poison.append(number_of(body)) if not poison else None
        return (500, {}, b"") if number_of(body) == poison[0] else well(body, number)

    with serving(failing) as server, teacher(server.url, tmp_path / "one", concurrency=1) as asked:
        made = list(asked.questions(work()))
    assert [len(one.faults) for one in made] == [1, 0, 0] and sum(
        len(one.conversations) for one in made
    ) == 11
    assert "made/0, frame 0" in made[0].faults[0].where and len(server.seen) == 13
    for status, word in ((500, "no answer after 2"), (400, "does not take the request")):
        refuse = (status, {}, b"")
        with (
            serving(lambda *_, refuse=refuse: refuse) as server,
            teacher(server.url, tmp_path / str(status)) as asked,
        ):
            with pytest.raises(
                RoboAlignError, match=f"5 requests failed one after the other.*{word}"
            ):
                list(asked.questions(work(10)))
            assert len(server.seen) < 30


def test_what_is_read_ahead_is_bounded(tmp_path: Path) -> None:
    taken, gate = [], threading.Event()

    def many():
        for one in work(40, 1):
            taken.append(one)
            yield one

    def wait(body, number):
        gate.wait(10)
        return well(body, number)

    with serving(wait) as server, teacher(server.url, tmp_path, concurrency=2) as asked:
        made = asked.questions(many())
        threading.Timer(0.2, gate.set).start()
        next(made)
        assert (
            len(taken) <= 5
        )  # frames and ends of works count alike: 4 ahead of the one that is waited for
        made.close()
    assert list(read_ahead([], 3)) == [] and list(read_ahead(iter("abcde"), 2)) == list("abcde")  # type: ignore


def run(url: str, folder: Path, episodes, count: int = 40) -> dict:
    with teacher(url, folder) as asked:
        data = data_of(*episodes)
        return write_questions(
            data, asked, folder, count=count, seed=0, settings={"model": "teach-1"}, shard=8
        )


EPISODES = [straight((0, -0.01, 0), steps=10, number=n) for n in range(6)]


def test_a_run_that_stops_repeats_no_request(tmp_path: Path) -> None:
    answering: list[Callable] = [well]
    with serving(lambda body, number: answering[0](body, number)) as server:
        whole = run(server.url, tmp_path / "whole", EPISODES)
        assert len(server.seen) == 40 == whole["conversations"]
        server.seen.clear()
        answering[0] = lambda body, number: (
            well(body, number) if number < 17 else (401, {}, b"no credit")
        )
        with pytest.raises(RoboAlignError, match="no credit"):
            run(server.url, tmp_path / "stopped", EPISODES)
        kept = (tmp_path / "stopped" / "answers.jsonl").read_bytes().count(b"\n")
        assert kept == 17 and not (tmp_path / "stopped" / "manifest.json").exists()
        with (tmp_path / "stopped" / "answers.jsonl").open("ab") as file:
            file.write(b'{"key": "cut sh')  # as a kill leaves it
        server.seen.clear()
        answering[0] = well
        resumed = run(server.url, tmp_path / "stopped", EPISODES)
        assert len(server.seen) == 40 - 17 and resumed == whole
        assert resumed["spent"]["replies"] == 40 and len(resumed["shards"]) > 1
        server.seen.clear()
        assert run(server.url, tmp_path / "stopped", EPISODES) == whole and not server.seen
    for name in whole["shards"]:
        assert (tmp_path / "whole" / name).read_bytes() == (
            tmp_path / "stopped" / name
        ).read_bytes()
    assert len(read_conversations(tmp_path / "stopped", "train")) == 40


def test_a_server_that_dies_ends_the_run_and_another_one_goes_on(tmp_path: Path) -> None:
    def dying(body, number):
        if number >= 11:
            raise ConnectionResetError  # the handler ends: the connection breaks without a response
        return well(body, number)

    with (
        serving(dying) as server,
        pytest.raises(RoboAlignError, match="5 requests failed one after the other"),
    ):
        run(server.url, tmp_path, EPISODES)
    with serving(well) as server:
        assert (
            run(server.url, tmp_path, EPISODES)["conversations"] == 40
            and len(server.seen) == 40 - 11
        )


def test_answers_that_were_kept_say_nothing_about_the_endpoint(tmp_path: Path) -> None:
    with serving(well) as server, teacher(server.url, tmp_path) as asked:
        list(asked.questions(work(12, 2)))
    frames = [Work(one.episode, (0, 1, 5)) for one in work(12, 2)]  # every third is new
    down, failed = (
        (500, {}, b""),
        pytest.raises(RoboAlignError, match="5 requests failed one after the other"),
    )
    with serving(lambda *_: down) as server, teacher(server.url, tmp_path) as asked, failed:
        list(asked.questions(frames))


def test_an_episode_that_comes_twice_is_asked_about_once(tmp_path: Path) -> None:
    def slow(body, number):
        time.sleep(0.05)
        return well(body, number)

    with serving(slow) as server, teacher(server.url, tmp_path) as asked:
        made = list(asked.questions([*work(1, 3), *work(1, 3)]))
        assert len(server.seen) == 3 and len(asked.cache) == 3 and not asked._under_way
    assert [len(one.conversations) for one in made] == [3, 3]


def test_more_frames_ask_only_for_what_is_new(tmp_path: Path) -> None:
    with serving(well) as server:
        run(server.url, tmp_path / "few", EPISODES, count=10)
        (tmp_path / "more").mkdir()
        shutil.copy(tmp_path / "few" / "answers.jsonl", tmp_path / "more")
        run(server.url, tmp_path / "more", EPISODES)
        assert len(server.seen) == 40


def test_broken_frames_and_episodes_do_not_reach_the_teacher(tmp_path: Path) -> None:
    wild, torn = straight((0, 0, 0), number=1), straight((0, 0, 0), number=2)
    wild.actions[0, 0] = np.nan
    torn.images["front"][1] = b"no image"
    with serving(well) as server, teacher(server.url, tmp_path) as asked:
        made: list[Made] = list(asked.questions([Work(wild, (0, 1)), Work(torn, (0, 1))]))
    assert [len(one.faults) for one in made] == [1, 1] and len(server.seen) == 1


def test_what_it_will_cost() -> None:
    found = estimate(1000, 400, "x" * 2000, (280, 280), 4)
    assert (found.requests, found.kept) == (1000, 400)
    assert found.prompt_tokens == 600 * (500 + 100) and found.completion_tokens == 600 * 4 * 100
    assert estimate(3, 9, "", (1, 1), 1).prompt_tokens == 0
    assert price(2_000_000, 500_000, 0.3, 2.0) == ", price 1.60" and price(1, 1, 0.3, None) == ""
