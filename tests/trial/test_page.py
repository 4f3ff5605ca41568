"""The page's requests: notes, double submits, two operators, keys, other sites, and what is no request."""

import http.client
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from trial_studies import TASK, AskedDesk, locked

from roboalign.core.errors import RoboAlignError
from roboalign.trial.log import TrialLog, read_log
from roboalign.trial.page import paged
from roboalign.trial.plan import read_plan

SUCCESS = {"outcome": "success"}
FAILURE = {"outcome": "failure", "failure": "dropped it", "stage": "reached"}


@pytest.fixture
def page(tmp_path):
    """(desk, port)"""
    _, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        desk = AskedDesk(plan, log)
        with paged(desk, port=0) as port:
            yield desk, port


def ask(port, path, body=None, **headers):
    """(status, decoded reply) of one request, as the page makes it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, data, named)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, json.loads(text) if "json" in reply.getheader("Content-Type") else text


def of(trial, attempt=1, operator="Ada", **more):
    return {"trial": trial, "attempt": attempt, "operator": operator, **more}


def events(desk):
    return [row["event"] for row in desk.log.rows]


def test_a_trial_is_started_noted_and_corrected(page):
    desk, port = page
    status, html = ask(port, "/")
    assert status == 200 and html.startswith(b"<!doctype html>")
    status, view = ask(port, "/state")
    assert (status, view) == (200, desk.view()) and view["running"] is None
    assert ask(port, "/start", of(1))[1]["running"]["requests"] == 1
    status, view = ask(port, "/end", of(1, result=FAILURE))
    assert status == 200 and view["done"] == 1 and view["last"]["correctable"]
    status, view = ask(port, "/correct", of(1, result=SUCCESS, reason="I pressed the wrong one"))
    assert status == 200 and view["last"]["result"]["outcome"] == "success"
    assert events(desk) == ["started", "ended", "corrected"]
    assert desk.log.rows[2]["reason"] == "I pressed the wrong one"


def test_the_picture_of_a_condition_is_in_the_plan_and_on_the_page(tmp_path):
    photo = Image.new("RGB", (40, 20), (250, 120, 10))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was turned: shown as 20 wide and 40 high
    photo.save(tmp_path / "left.jpg", exif=exif)
    task = TASK | {"conditions": ["left", "right"], "pictures": {"left": "left.jpg"}}
    path, plan, _ = locked(tmp_path, tasks={"lift": task}, trials=2)
    (tmp_path / "left.jpg").unlink()  # the plan has it
    assert read_plan(path) == plan
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        with paged(desk := AskedDesk(plan, log), port=0) as port:
            for trial in plan.trials:
                status, data = ask(port, f"/picture/{trial.number}")
                assert status == (200 if trial.condition == "left" else 404)
                if status == 200:
                    image = Image.open(io.BytesIO(data))
                    assert image.size == (20, 40) and image.format == "JPEG"
                    assert np.abs(np.array(image).mean((0, 1)) - (250, 120, 10)).max() < 3
            assert ask(port, "/picture/0")[0] == ask(port, "/picture/5")[0] == 404
            assert desk.view()["trial"]["picture"] == (plan.trials[0].condition == "left")
        with paged(desk, port=0, api_key="secret-key") as port:
            assert ask(port, "/picture/1")[0] == 401
    (tmp_path / "left.jpg").write_bytes(b"no picture")
    with pytest.raises(RoboAlignError, match=r"left\.jpg: it cannot be read as a picture"):
        locked(tmp_path, tasks={"lift": task})


def test_a_double_submit_is_one_note_and_a_late_one_is_told_what_is_there(page):
    desk, port = page
    for _ in range(2):
        assert ask(port, "/start", of(1))[0] == 200
    for _ in range(2):
        assert ask(port, "/end", of(1, result=SUCCESS))[0] == 200
    status, said = ask(port, "/end", of(1, operator="Bob", result=FAILURE))
    assert status == 409 and said["problem"] == "success was noted for this trial already"
    assert said["view"] == desk.view()
    assert events(desk) == ["started", "ended"]


def test_submits_at_the_same_time_leave_one_row_each(page):
    desk, port = page
    together = threading.Barrier(6)

    def submit(path, body):
        together.wait()
        return ask(port, path, body)[0]

    with ThreadPoolExecutor(6) as pool:
        for trial in (1, 2, 3):
            starts = [of(trial, operator=f"operator {i}") for i in range(6)]
            statuses = list(pool.map(submit, ["/start"] * 6, starts))
            assert sorted(statuses) == [200] + [409] * 5
            results = [SUCCESS] * 3 + [FAILURE] * 3
            ends = [of(trial, operator=f"operator {i}", result=r) for i, r in enumerate(results)]
            statuses = list(pool.map(submit, ["/end"] * 6, ends))
            kept = desk.attempts()[-1].result.outcome
            assert statuses == [200 if r["outcome"] == kept else 409 for r in results]
    assert events(desk) == ["started", "ended"] * 3
    read_log(desk.log.path, desk.plan.sha256)


@pytest.mark.parametrize(
    ("path", "body", "status", "problem"),
    [
        ("/end", b"{", 400, "body: a map with trial"),
        ("/end", b"[" * 60_000, 400, "body: a map with trial"),
        ("/end", {"trial": "1", "attempt": 1, "operator": "Ada"}, 400, "body: a map with trial"),
        ("/end", {"trial": True, "attempt": 1, "operator": "Ada"}, 400, "body: a map with trial"),
        ("/end", of(1), 400, "outcome: "),
        ("/end", of(1, result={"outcome": "won"}), 400, "outcome: `outcome`"),
        ("/end", of(1, result=SUCCESS | {"arm": "base"}), 400, "outcome: unknown key `arm`"),
        ("/end", of(1, result={"outcome": "failure"}), 400, "failure: the kind is missing"),
        ("/end", of(1, operator="", result=SUCCESS), 400, "operator: "),
        ("/end", of(2, result=SUCCESS), 409, "another trial is under way"),
        ("/correct", of(1, result=SUCCESS, reason="x"), 409, "only the last trial"),
        ("/unblind", of(1), 404, "there is nothing here"),
        ("/state/../key", None, 404, "There is nothing here"),
        ("/end", b"x" * 70_000, 413, "A request has"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(page, path, body, status, problem):
    desk, port = page
    desk.start(1, 1, "Ada")
    got, said = ask(port, path, body)
    assert got == status and said["problem"].startswith(problem)
    assert events(desk) == ["started"]


@given(data=st.binary(max_size=200))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_end_the_server(page, data):
    desk, port = page
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
    assert ask(port, "/state")[0] == 200 and events(desk) == []


def test_other_sites_cannot_use_it(page):
    desk, port = page
    good = f"127.0.0.1:{port}"
    assert ask(port, "/start", of(1), Origin=f"http://{good}", Host=good)[0] == 200
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": f"evil.example:{port}"},  # a name that was made to lead here
        {"Content_Type": "text/plain"},  # what a form of another site may send unasked
    ):
        assert ask(port, "/end", of(1, result=SUCCESS), **headers)[0] == 403
    assert events(desk) == ["started"]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    reply = connection.getresponse()
    reply.read()
    connection.close()
    policy = reply.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_beyond_this_machine_it_asks_for_a_key(tmp_path):
    _, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        desk = AskedDesk(plan, log)
        with pytest.raises(RoboAlignError, match="no key is asked"), paged(desk, "0.0.0.0", 0):
            pass
        with paged(desk, "127.0.0.1", 0, api_key="secret-key") as port:
            assert ask(port, "/")[0] == 200  # the page says nothing of the study
            for headers in (
                {},
                {"Authorization": "Api-Key wrong"},
                {"Authorization": "secret-key"},
            ):
                assert ask(port, "/state", **headers)[0] == 401
                assert ask(port, "/start", of(1), **headers)[0] == 401
            right = {"Authorization": "Api-Key secret-key", "Host": "robot.lab:8080"}
            assert ask(port, "/start", of(1), **right)[0] == 200
            with pytest.raises(RoboAlignError, match="another --page-port"), paged(desk, port=port):
                pass
    assert events(desk) == ["started"]
