"""The desk: order of the plan, one note an attempt, void attempts repeated, two operators, corrections."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trial_studies import AskedDesk, locked

from roboalign.core.errors import RoboAlignError
from roboalign.trial.attempts import INTERRUPTED, Outcome, attempts_in
from roboalign.trial.desk import Desk
from roboalign.trial.log import TrialLog, read_log
from roboalign.trial.terminal import Terminal

SUCCESS = Outcome(outcome="success")
FAILURE = Outcome(outcome="failure", failure="dropped it", stage="reached")
VOID = Outcome(outcome="excluded", exclusion="robot or controller fault")


@pytest.fixture
def desk(tmp_path):
    _, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        yield AskedDesk(plan, log)


def events(desk):
    return [row["event"] for row in desk.log.rows]


def done(desk, result):
    """Start the next trial and end it."""
    trial = desk.view()["trial"]
    desk.start(trial["number"], trial["attempt"], "Ada")
    desk.end(trial["number"], trial["attempt"], "Ada", result)
    return trial["number"]


def test_trials_follow_the_plan_and_void_ones_are_done_again_at_once(desk):
    numbers = [done(desk, result) for result in (SUCCESS, VOID, VOID, SUCCESS, SUCCESS)]
    assert numbers == [1, 2, 2, 2, 3]
    attempts = desk.attempts()
    assert [(a.trial, a.number, a.is_void) for a in attempts] == [
        (1, 1, False),
        (2, 1, True),
        (2, 2, True),
        (2, 3, False),
        (3, 1, False),
    ]
    view = desk.view()
    assert (view["done"], view["total"], view["void"]) == (3, 16, 2)
    assert view["trial"]["number"] == 4 and view["running"] is None


def test_nothing_that_operators_see_differs_between_arms(tmp_path):
    """The same study under the other key, that is with the arms of every trial exchanged: the same views."""
    path, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        desk = AskedDesk(plan, log)
        text = str(desk.view()) + path.read_text().partition('"trials"')[2]
    assert "base" not in text and "aligned" not in text and "9001" not in text
    assert not hasattr(desk, "key")


def test_outcomes_that_contradict_themselves_are_refused(desk):
    desk.start(1, 1, "Ada")
    lift = desk.view()["trial"]["task"] == "lift"
    wrong = {
        "failure: the kind is missing": Outcome(outcome="failure"),
        "exclusion: the reason is missing": Outcome(outcome="excluded"),
        "stage: 'flying' is not one of": Outcome(
            outcome="failure", failure="other", stage="flying", note="x"
        ),
        "stage: 'reached' is not one of none": Outcome(outcome="success", stage="reached"),
        "failure: 'dropped it' is not": Outcome(outcome="success", failure="dropped it"),
        "exclusion: 'bad luck' is not one of": Outcome(outcome="excluded", exclusion="bad luck"),
        "note: `other` needs words": Outcome(outcome="failure", failure="other"),
        "a person stepped in is no success": Outcome(outcome="success", intervention=True),
    }
    assert lift
    for problem, outcome in wrong.items():
        with pytest.raises(RoboAlignError, match=problem):
            desk.end(1, 1, "Ada", outcome)
    for name in ("", " ", "x" * 61):
        with pytest.raises(RoboAlignError, match="operator"):
            desk.end(1, 1, name, SUCCESS)
    assert events(desk) == ["started"]


def test_an_unanswered_request_makes_the_attempt_void(desk):
    desk.start(1, 1, "Ada")
    for what in ("requests", "unanswered"):
        assert desk.count(desk.running(), what)
    with pytest.raises(
        RoboAlignError, match="1 requests were not answered, so this attempt is void"
    ):
        desk.end(1, 1, "Ada", SUCCESS)
    desk.end(1, 1, "Ada", VOID)
    (attempt,) = desk.attempts()
    assert (attempt.requests, attempt.unanswered, attempt.faults) == (2, 1, 0)
    with pytest.raises(RoboAlignError, match="not answered"):
        desk.correct(1, 1, "Ada", FAILURE, "it failed")
    assert desk.view()["trial"]["number"] == 1 and desk.view()["trial"]["attempt"] == 2


def test_a_trial_in_which_the_robot_never_asked_has_no_result(tmp_path):
    _, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        desk = Desk(plan, log)
        desk.start(1, 1, "Ada")
        for result in (SUCCESS, FAILURE):
            with pytest.raises(RoboAlignError, match="the robot never asked, so this attempt is"):
                desk.end(1, 1, "Ada", result)
        desk.end(1, 1, "Ada", VOID)
        with pytest.raises(RoboAlignError, match="the robot never asked"):
            desk.correct(1, 1, "Ada", FAILURE, "it failed")


def test_what_is_counted_late_is_of_the_attempt_that_it_was_asked_in(desk):
    desk.start(1, 1, "Ada")
    first = desk.running()
    desk.end(1, 1, "Ada", FAILURE)
    desk.start(2, 1, "Ada")
    assert not desk.count(first, "unanswered")
    desk.end(2, 1, "Ada", SUCCESS)
    assert [a.unanswered for a in desk.attempts()] == [0, 0]


def test_a_note_sent_twice_is_one_note_and_another_one_is_refused(desk):
    desk.start(1, 1, "Ada")
    desk.start(1, 1, "Ada")
    desk.end(1, 1, "Ada", FAILURE)
    desk.end(1, 1, "Ada", FAILURE)
    with pytest.raises(RoboAlignError, match="failure was noted for this trial already"):
        desk.end(1, 1, "Bob", SUCCESS)
    with pytest.raises(RoboAlignError, match="not the next one any more"):
        desk.start(1, 1, "Ada")
    desk.start(2, 1, "Bob")
    with pytest.raises(RoboAlignError, match="under way already"):
        desk.start(2, 1, "Ada")
    with pytest.raises(RoboAlignError, match="another trial is under way by now"):
        desk.end(1, 1, "Ada", FAILURE)
    assert events(desk) == ["started", "ended", "started"]


def test_two_operators_at_once_leave_one_outcome(desk):
    pool = ThreadPoolExecutor(2)
    for number in range(1, 9):
        desk.start(number, 1, "Ada")
        together = threading.Barrier(2)

        def note(who, number=number, together=together):
            name, result = who
            together.wait()
            try:
                desk.end(number, 1, name, result)
            except RoboAlignError as error:
                return str(error)
            return "noted"

        task_stage = desk.plan.tasks[desk.plan.trials[number - 1].task].stages
        failure = FAILURE if task_stage else FAILURE.model_copy(update={"stage": None})
        said = list(pool.map(note, [("Ada", SUCCESS), ("Bob", failure)]))
        assert sorted(text == "noted" for text in said) == [False, True]
        kept = desk.attempts()[-1].result
        assert kept == (SUCCESS if said[0] == "noted" else failure)
    pool.shutdown()
    assert Counter(events(desk)) == {"started": 8, "ended": 8}


def test_a_correction_keeps_both_and_can_reopen_the_trial(desk):
    done(desk, SUCCESS)
    with pytest.raises(RoboAlignError, match="reason is missing"):
        desk.correct(1, 1, "Ada", FAILURE, " ")
    desk.correct(1, 1, "Ada", FAILURE, "pressed the wrong button")
    desk.correct(1, 1, "Ada", FAILURE, "pressed the wrong button")
    assert events(desk) == ["started", "ended", "corrected"]
    assert desk.attempts()[0].result == FAILURE and desk.attempts()[0].corrections == 1
    desk.correct(1, 1, "Ada", VOID, "the camera was off")
    assert done(desk, SUCCESS) == 1
    desk.start(2, 1, "Ada")
    with pytest.raises(RoboAlignError, match="only the last trial"):
        desk.correct(1, 2, "Ada", FAILURE, "late")


@example(["start", "kill", "start", "void", "start", "success", "kill", "start", "failure"])
@given(st.lists(st.sampled_from(["start", "success", "failure", "void", "kill"]), max_size=25))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_the_log_says_it_and_no_attempt_is_dropped(tmp_path, steps):
    """A model beside the desk: a list of (trial, how it ended)."""
    _, plan, _ = locked(tmp_path)
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    log = TrialLog(path, plan.sha256)
    desk = AskedDesk(plan, log)
    model, running, number = [], False, 1
    for step in steps:
        if step == "kill":  # the file descriptor dies with its process
            log.close()
            log = TrialLog(path, plan.sha256)
            desk = AskedDesk(plan, log)
            if running:
                model[-1] = (number, INTERRUPTED)
            running = False
        elif step == "start":
            if running or number > len(plan.trials):
                continue
            desk.start(number, desk.view()["trial"]["attempt"], "Ada")
            model.append((number, "open"))
            running = True
        elif running:
            outcome = {"success": SUCCESS, "void": VOID, "failure": FAILURE}[step]
            if step == "failure" and not plan.tasks[plan.trials[number - 1].task].stages:
                outcome = FAILURE.model_copy(update={"stage": None})
            desk.end(number, desk.view()["trial"]["attempt"], "Ada", outcome)
            model[-1] = (number, step)
            running = False
            number += step != "void"
    log.close()
    attempts = attempts_in(plan, read_log(path), "log") if path.stat().st_size else []

    def ending(attempt):
        if attempt.result is None:
            return "open"
        if attempt.result.exclusion == INTERRUPTED:
            return INTERRUPTED
        return "void" if attempt.is_void else attempt.result.outcome

    assert [(attempt.trial, ending(attempt)) for attempt in attempts] == model


def test_a_log_that_skips_a_trial_is_refused(tmp_path):
    _, plan, _ = locked(tmp_path)
    with TrialLog(tmp_path / "log.jsonl", plan.sha256) as log:
        log.append("started", trial=2, attempt=1, code="x", operator="Ada")
        with pytest.raises(RoboAlignError, match=r"log.jsonl, line 1: .*not the next one"):
            AskedDesk(plan, log)


def test_the_terminal_notes_what_is_typed(desk):
    typed = iter(
        ["", "?", "n", "9", "3", "2", "", "it slipped", "c", "x", "2", "", "typo", "", "y", "", "q"]
    )
    said = []
    Terminal(
        desk, "Ada", ask=lambda text: said.append(text) or next(typed), tell=said.append
    ).work()
    assert events(desk) == ["started", "ended", "corrected", "started", "ended"]
    first = desk.log.rows[1]["result"]
    assert (first["failure"], first["stage"], first["note"]) == (
        "dropped it",
        "reached",
        "it slipped",
    )
    assert desk.log.rows[2]["result"]["exclusion"] == "robot or controller fault"
    assert [a.number for a in desk.attempts()] == [1, 2] and desk.attempts()[1].trial == 1
    assert any("attempt 2" in text for text in said)
    Terminal(desk, "Ada", ask=lambda text: (_ for _ in ()).throw(EOFError), tell=said.append).work()
