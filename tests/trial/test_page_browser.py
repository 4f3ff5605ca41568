"""The page in Chromium at the size of a phone: what an operator taps is what the log says."""

import os
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("websockets")
pytest.importorskip("msgpack")

from browser import PROGRAM, phones
from trial_studies import TASK, locked

from roboalign.trial.desk import Desk
from roboalign.trial.log import TrialLog
from roboalign.trial.page import paged

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")


def shown(desk):
    return [
        (a.trial, a.number, a.result.outcome if a.result else None, a.operator)
        for a in desk.attempts()
    ]


def test_an_operator_works_on_a_phone(tmp_path):
    """Start, failure with stage, correction, void, success, another phone, key, end: with pictures of each."""
    pictures = Path(os.environ.get("PICTURES") or tmp_path)
    Image.new("RGB", (1600, 1200), "orange").save(tmp_path / "scene.png")
    task = TASK | {"stages": ["reached", "grasped"], "pictures": {"as set up": "scene.png"}}
    tasks = {"lift": task, "push": TASK}
    _, plan, _ = locked(tmp_path, trials=1, seconds=90, tasks=tasks)
    with (
        TrialLog(tmp_path / "log.jsonl", plan.sha256) as log,
        phones(tmp_path, 2) as (phone, other),
        paged(desk := Desk(plan, log), port=0, api_key="secret-key") as port,
    ):
        for one in (phone, other):
            one.open(f"http://127.0.0.1:{port}/")
            one.wait("Key")
            one.type("key", "secret-key")
            one.tap("Open")
            one.wait("Start the trial")
        phone.tap("Start the trial")
        phone.wait("operator: a name has 1 to 60 characters")
        assert shown(desk) == []
        phone.type("operator", "Ada")
        phone.until("document.querySelector('img').naturalWidth === 960")
        phone.picture(pictures / "next.png")
        phone.tap("Start the trial")
        phone.wait("the robot has not asked yet")
        desk.count(desk.running(), "requests")
        phone.wait("the robot asked 1 times")
        assert " / 90 s" in phone.text()
        phone.picture(pictures / "running.png")

        other.wait("Failure")  # the other phone follows
        other.tap("Success")
        other.wait("Save")
        phone.tap("Failure")
        phone.tap("dropped it")
        phone.tap("Save")
        phone.wait("The stage is missing")
        top = "document.getElementById('problem').getBoundingClientRect().top"
        assert -1 < phone.run(top) < 844  # the button is far below it
        phone.tap("reached")
        phone.type("note", "slipped <b>out</b>")
        phone.picture(pictures / "failure.png")
        phone.tap("Save")
        phone.wait("Last: trial 1")
        assert shown(desk) == [(1, 1, "failure", "Ada")]
        assert desk.attempts()[0].result.note == "slipped <b>out</b>"
        other.wait("Somebody else noted this trial")

        phone.tap("Correct it")
        phone.tap("Success")
        phone.wait("✓ Success")
        phone.type("reason", "wrong button")
        phone.picture(pictures / "correct.png")
        phone.tap("Save")
        phone.wait("success")
        assert shown(desk) == [(1, 1, "success", "Ada")] and desk.attempts()[0].corrections == 1

        phone.tap("Start the trial")
        phone.wait("the robot has not asked yet")
        phone.tap("Void: do it again")
        phone.tap("camera or sensor fault")
        phone.tap("Save")
        phone.wait("Trial 2, attempt 2")
        assert "1 void" in phone.text()
        for trial in (2, 3, 4):
            phone.tap("Start the trial")
            phone.wait("the robot has not asked yet")
            desk.count(desk.running(), "requests")
            phone.tap("Success")
            phone.tap("Save")
            phone.wait(f"Last: trial {trial}")
        phone.wait("All trials are done")
        phone.picture(pictures / "done.png")
        assert shown(desk)[1:] == [
            (2, 1, "excluded", "Ada"),
            *((trial, attempt, "success", "Ada") for trial, attempt in ((2, 2), (3, 1), (4, 1))),
        ]
        assert phone.overflow() <= 0 and other.overflow() <= 0
        assert "base" not in phone.text() and "aligned" not in phone.text()
        assert phone.problems == other.problems == []


def test_a_router_that_went_away_is_said_and_comes_back(tmp_path):
    _, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log, phones(tmp_path) as (phone,):
        desk = Desk(plan, log)
        with paged(desk, port=0) as port:
            phone.open(f"http://127.0.0.1:{port}/")
            phone.wait("Start the trial")
            phone.type("operator", "Ada")
            phone.tap("Start the trial")
            phone.wait("the robot has not asked yet")
            phone.tap("Success")
            desk.count(desk.running(), "requests")
            phone.type("note", "kept")
        phone.tap("Save")
        phone.wait("The router cannot be reached")
        with paged(desk, port=port):
            phone.tap("Save")
            phone.wait("Last: trial 1")
        assert desk.attempts()[0].result.note == "kept"
