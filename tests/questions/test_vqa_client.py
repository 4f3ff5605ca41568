"""The client and the cache against a real HTTP server."""

import email.utils
import errno
import json
import os
import time
from pathlib import Path

import pytest
from vqa_made import completion, serving

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.questions.teacher.cache import AnswerCache, request_key
from roboalign.questions.teacher.client import (
    LONGEST_WAIT,
    ChatClient,
    Endpoint,
    TeacherReply,
    retry_after,
)

BODY = {"model": "m", "messages": []}


def client_of(url: str, **given) -> ChatClient:
    return ChatClient(
        Endpoint(**{"url": url, "retries": 3, "first_wait": 0.01, "timeout": 5.0, **given})
    )


def test_a_reply_and_its_tokens() -> None:
    with serving(lambda body, number: completion("hello")) as server:
        assert client_of(server.url + "/chat/completions/").ask(BODY) == TeacherReply(
            "hello", "stop", "", 100, 20
        )
        assert server.seen == [{"path": "/v1/chat/completions", **BODY}] and server.keys == [None]


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"Retry-After": "0"}, b"slow down"),
        (500, {}, b""),
        (503, {}, b"<html>"),
        (529, {}, b""),
        (507, {}, b""),
        (200, {}, b"<html>a proxy's page</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{}]}'),
        (200, {"Content-Length": "5000"}, b"cut short"),
    ],
)
def test_what_passes_is_asked_again(failure) -> None:
    with serving(lambda body, number: completion("at last") if number == 2 else failure) as server:
        reply = client_of(server.url, timeout=0.3).ask(BODY)
        assert isinstance(reply, TeacherReply) and reply.text == "at last" and len(server.seen) == 3


def test_a_timeout_is_asked_again_and_a_dead_endpoint_is_a_fault() -> None:
    def slow(body, number):
        time.sleep(0.5 if number == 0 else 0)
        return completion("late")

    with serving(slow) as server:
        assert client_of(server.url, timeout=0.2).ask(BODY).text == "late" and len(server.seen) == 2
    fault = client_of(server.url, retries=1).ask(BODY)
    assert isinstance(fault, Fault) and "no answer after 2 requests (ConnectError" in fault.problem


def test_a_filter_before_the_model_is_an_answer_that_refuses() -> None:
    filtered = {"error": {"code": "content_filter", "message": "The prompt was filtered"}}
    nothing = {"choices": [{"index": 0, "finish_reason": "content_filter"}]}
    for answer in (
        (400, {}, json.dumps(filtered).encode()),
        (200, {}, json.dumps(nothing).encode()),
    ):
        with serving(lambda *_, answer=answer: answer) as server:
            reply = client_of(server.url).ask(BODY)
            assert (
                isinstance(reply, TeacherReply)
                and reply.finish == "content_filter"
                and len(server.seen) == 1
            )


def test_text_in_parts_is_joined() -> None:
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "a cup, "},
        {"type": "text", "text": "red"},
    ]
    with serving(lambda body, number: completion(parts)) as server:  # type: ignore[arg-type]
        assert client_of(server.url).ask(BODY).text == "a cup, red"


def test_a_response_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda body, number: (200, {}, b" " * 3_000_000)) as server:
        monkeypatch.setattr("roboalign.questions.teacher.client.MOST_REPLY_BYTES", 1_000_000)
        assert "without an end" in client_of(server.url, retries=0).ask(BODY).problem
        monkeypatch.setattr("roboalign.questions.teacher.client.MOST_TIMES", 0)
        assert "without an end" in client_of(server.url, retries=0).ask(BODY).problem


def test_retry_after_is_waited_for() -> None:
    def wait_first(body, number):
        return completion("now") if number else (429, {"Retry-After": "1"}, b"")

    with serving(wait_first) as server:
        began = time.monotonic()
        assert client_of(server.url).ask(BODY).text == "now"
        assert 0.95 < time.monotonic() - began < 3
    assert retry_after("2.5") == 2.5 and retry_after("1e9") == LONGEST_WAIT
    assert 55 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [retry_after(text) for text in (None, "", "-3", "soon", "nan", "Mon, 99 Foo 2020")] == [
        0.0
    ] * 6


def test_waits_grow_and_stop_ends_them(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with serving(lambda body, number: (500, {}, b"")) as server:
        client, waits = client_of(server.url, retries=4, first_wait=1.0), []
        monkeypatch.setattr(client.stop, "wait", lambda seconds: waits.append(seconds))
        assert "no answer after 5 requests (HTTP 500" in client.ask(BODY).problem
        for wait, longest in zip(waits, (1, 2, 4, 8), strict=True):
            assert longest / 2 <= wait <= longest
        told = capsys.readouterr().err.splitlines()
        assert told == ["[teacher] HTTP 500: no text; asked again in 1 s"]  # not four times
        client.stop.set()
        assert isinstance(client.ask(BODY), Fault) and len(server.seen) == 5


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "TEACHER_KEY"), (403, "TEACHER_KEY"), (404, "--model")]
)
def test_a_wrong_key_or_model_ends_the_run_and_the_key_is_not_told(
    status: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    answer = (status, {}, b"Incorrect key sk-secret provided")
    with serving(lambda body, number: answer) as server, pytest.raises(RoboAlignError) as raised:
        client_of(server.url, key_env="TEACHER_KEY").ask(BODY)
    assert server.keys == ["Bearer sk-secret"] and len(server.seen) == 1
    assert (
        "***" in str(raised.value)
        and remedy in raised.value.fix
        and "sk-secret" not in str(raised.value)
    )


def test_a_request_that_is_not_taken_is_a_fault_and_not_sent_again() -> None:
    with serving(lambda body, number: (400, {}, b"no images here")) as server:
        fault = client_of(server.url).ask(BODY)
    assert isinstance(fault, Fault) and "no images here" in fault.problem and len(server.seen) == 1


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(lambda body, number: completion("stolen")) as other:
        moved = (307, {"Location": f"{other.url}/chat/completions"}, b"")
        with (
            serving(lambda body, number: moved) as server,
            pytest.raises(RoboAlignError, match="HTTP 307"),
        ):
            client_of(server.url).ask(BODY)
        assert not other.seen


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/v1",
        "localhost:8000",
        "http://",
        "https://user:pw@a/v1",
        "https://a/v1?key=s",
        "http://a:b/v1",
    ],
)
def test_urls_that_are_none_or_hold_a_secret_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Endpoint(url=url)


def test_a_key_that_is_no_header_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with (
        serving(lambda body, number: completion("")) as server,
        pytest.raises(RoboAlignError, match="OPENAI_API_KEY"),
    ):
        client_of(server.url).ask(BODY)


def record(text: str) -> dict:
    return {"text": text, "prompt_tokens": 3, "completion_tokens": 2}


def test_the_cache_keeps_what_was_written_and_drops_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    cache = AnswerCache(path)
    for number in range(5):
        cache.put(f"key{number}", record(f"text {number}"))
    with pytest.raises(RoboAlignError, match="another command"):
        AnswerCache(path)
    cache.close()
    whole = path.read_bytes()
    for cut in (*range(0, len(whole), 29), len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        cache = AnswerCache(path)
        lines = whole[:cut].count(b"\n")
        assert len(cache) == lines and (cache.prompt_tokens, cache.completion_tokens) == (
            3 * lines,
            2 * lines,
        )
        cache.put("new", record("after"))
        assert cache.get("new")["text"] == "after" and (cache.get("key0") is None) == (lines == 0)
        cache.close()
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert keys == ["key0", "key1", "key2", "key3", "key4", "new"]


def test_a_full_disk_is_one_message_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "answers.jsonl", os.write
    cache = AnswerCache(path)
    cache.put("a", record("kept"))

    def full(descriptor: int, line: bytes) -> int:
        if len(line) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, line[:20])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RoboAlignError, match=r"answers.jsonl: .*No space left.* Fix: make room"):
        cache.put("b", record("lost"))
    monkeypatch.setattr(os, "write", real)
    cache.put("c", record("after"))
    assert [cache.get(key) and cache.get(key)["text"] for key in "abc"] == ["kept", None, "after"]
    cache.close()
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"key": 3}', "nonsense", '{"key": "a", "prompt_tokens": "x"}', "\xff"]
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        json.dumps({"key": "a", **record("")}).encode() + b"\n" + line.encode("latin1") + b"\n"
    )
    with pytest.raises(RoboAlignError, match=r"answers.jsonl, line 2"):
        AnswerCache(path)


def test_the_key_of_a_request_is_that_of_all_its_parts() -> None:
    bodies = [
        {"model": "a", "messages": [1]},
        {"model": "b", "messages": [1]},
        {"model": "a", "messages": [2]},
    ]
    assert len({request_key(body) for body in bodies}) == 3
    assert request_key({"messages": [1], "model": "a"}) == request_key(bodies[0])
