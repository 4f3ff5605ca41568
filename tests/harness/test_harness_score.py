"""Scoring servers on the toy benchmark: equal outcomes over each wire, crashes apart, resumption, refusals."""

import contextlib
import json
import time

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from servers import Replay, outcomes, websocket_server
from toy_on_path import PACKAGE

from roboalign.core.errors import RoboAlignError
from roboalign.harness import score as module
from roboalign.harness.score import Measurement, score_server
from roboalign.harness.server import Server
from roboalign.harness.settings import ClientConfig, resolved
from roboalign.serve.wire import pack_message
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch

CONFIG = RolloutConfig(replan_every=4, max_steps=7, batch_size=1)
TASKS = ("toy/touch-red", "toy/touch-green")


@pytest.fixture
def toy(monkeypatch):
    """Four episodes; the expert is not done with all of them before the limit."""
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    from toy_benchmark.spec import ToyConfig, ToySpec

    return Measurement(ToySpec("toy"), ToyConfig(), CONFIG, TASKS, 2)


@pytest.fixture
def here(monkeypatch):
    """Workers in this process instead of spawned ones."""

    def evaluate(make_act, benchmark, episodes, config, *, workers, on_result):
        pool = EnvironmentPool(benchmark, 1)
        act = make_act()
        for episode in episodes:
            for result in rollout_batch(act, pool, [episode], config):
                on_result(result)
        act.wire.close()

    monkeypatch.setattr(module, "evaluate_parallel", evaluate)


def server_at(port: int, section: str = "toy", **settings) -> Server:
    settings = {"image_size": 64, "timeout": 5.0, **settings}
    return Server(f"ws://127.0.0.1:{port}", None, resolved(ClientConfig(**settings), section))


def replayed(toy: Measurement) -> Replay:
    return Replay(toy.spec.make(toy.settings), toy.keys, toy.rollout)


def openpi_answer(replay: Replay):
    return lambda request: {"actions": replay(request["prompt"], request["state"])}


def rows_of(rows) -> dict:
    return {(row["task"], row["seed"]): (row["success"], row["steps"]) for row in rows}


def test_the_experts_outcomes_from_two_processes(toy, tmp_path, capsys):
    replay = replayed(toy)
    metadata = {"reset_pose": np.arange(3.0), "odd": float("nan")}
    with websocket_server(openpi_answer(replay), metadata) as port:
        rows = score_server(server_at(port), toy, tmp_path / "out", workers=2)
    assert rows_of(rows) == replay.results
    assert 0 < sum(success for success, _ in replay.results.values()) < 4
    assert [row["crash"] for row in rows] == [None] * 4
    said = capsys.readouterr().err
    assert "reset_pose: [0.0, 1.0, 2.0]" in said and "12 actions of 4 numbers; 4 are" in said
    record = json.loads((tmp_path / "out/client.json").read_text())
    assert record["server"] == {"reset_pose": [0.0, 1.0, 2.0], "odd": "nan"}
    assert record["settings"]["preset"] == "openpi" and record["tasks"] == list(TASKS)
    assert record["versions"]["toy-benchmark"] == "not installed"
    assert record["first_answer"]["chunk"] == [12, 4]
    protocol = json.loads((tmp_path / "out/protocol.json").read_text())
    assert protocol["benchmark"] == "toy" and protocol["max_steps"] == 7
    assert protocol["episodes_per_task"] == 2 and protocol["replan_every"] == 4


def test_first_frames_are_kept_as_sent(toy, here, tmp_path):
    from PIL import Image

    replay, sent = replayed(toy), []

    def answer(request):
        sent.append(request["image"])
        return openpi_answer(replay)(request)

    with websocket_server(answer) as port:
        score_server(server_at(port), toy, tmp_path, workers=1)
    first = np.asarray(Image.open(tmp_path / "frames/image.png"))
    np.testing.assert_array_equal(first, sent[0])


def test_starvlas_payload_gives_the_experts_outcomes(toy, here, tmp_path):
    replay = replayed(toy)

    def answer(request):
        (example,) = request["examples"]
        chunk = replay(example["lang"], example["state"])
        return {"status": "ok", "ok": True, "data": {"actions": chunk[None]}}

    with websocket_server(answer, {"action_chunk_size": 12}) as port:
        server = server_at(port, preset="starvla", send_state=True)
        rows = score_server(server, toy, tmp_path, workers=1)
    assert rows_of(rows) == replay.results


def test_error_answers_are_crashes_and_can_run_again(toy, here, tmp_path):
    """openpi's server sends a traceback and closes; the next request opens a new connection."""
    replay = replayed(toy)
    broken = {"on": True}

    def answer(request):
        if broken["on"] and replay.asked == 2:  # after the first answer and that of step 0
            broken["on"] = False
            return 'Traceback (most recent call last):\n  File "a.py"\nValueError: too dark'
        return openpi_answer(replay)(request)

    with websocket_server(answer) as port:
        rows = score_server(server_at(port), toy, tmp_path, workers=1)
        crashed = [row for row in rows if row["crash"]]
        assert [row["crash"] for row in crashed] == ["the server: an error: ValueError: too dark"]
        assert not crashed[0]["success"] and crashed[0]["steps"] > 0
        asked = replay.asked
        assert (
            score_server(server_at(port), toy, tmp_path, workers=1) == rows
        )  # nothing is left to do
        assert replay.asked == asked
        again = score_server(server_at(port), toy, tmp_path, workers=1, retry_crashes=True)
    assert rows_of(again) == replay.results
    kept = [json.loads(line) for line in (tmp_path / "crashes.jsonl").read_text().splitlines()]
    assert kept == crashed


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ({"actions": np.full((12, 4), np.nan)}, "48 of the 48 numbers of its chunk are not finite"),
        ({"actions": np.zeros((3, 4))}, "its chunk has 3 actions, and 4 are executed"),
        ({"actions": np.zeros((12, 7))}, "and an action here has 4 numbers"),
        ({"action": np.zeros((12, 4))}, "no array of numbers, but NoneType"),
        (b"\xc1", "an unreadable answer"),
        (pack_message([1]), "a list instead of a map"),
        (None, "it closed a new connection without an answer"),
    ],
)
def test_unusable_answers(toy, here, tmp_path, reply, problem):
    """As the first answer they stop the command before any episode; later they are crashes."""
    replay = replayed(toy)
    good = {"answers": 0}

    def answer(request):
        good["answers"] -= 1
        return openpi_answer(replay)(request) if good["answers"] >= 0 else reply

    with websocket_server(answer) as port:
        with pytest.raises(RoboAlignError, match=f"first answer cannot be executed.*{problem}"):
            score_server(server_at(port), toy, tmp_path, workers=1)
        assert not (tmp_path / "episodes.jsonl").exists()
        good["answers"] = 2  # the first answer, and that of the first episode
        with pytest.raises(RoboAlignError, match=f"3 episodes in a row got no answer.*{problem}"):
            score_server(server_at(port), toy, tmp_path, workers=1)
        rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
        assert [row["steps"] for row in rows] == [4, 0, 0]
        good["answers"] = 1000
        rows = score_server(server_at(port), toy, tmp_path, workers=1, retry_crashes=True)
    assert rows_of(rows) == replay.results


def test_a_late_answer_is_a_crash_and_never_taken_for_the_next_ones(toy, here, tmp_path):
    replay, slow = replayed(toy), [0.6]

    def answer(request):
        if replay.asked == 2 and slow:
            time.sleep(slow.pop())
        return openpi_answer(replay)(request)

    with websocket_server(answer) as port:
        rows = score_server(server_at(port, timeout=0.3), toy, tmp_path, workers=1)
    crashes = [row["crash"] for row in rows]
    assert crashes.count(None) == 3 and "the server: no answer within 0.3 s" in crashes
    for row in rows:
        if row["crash"] is None:
            assert (row["success"], row["steps"]) == replay.results[row["task"], row["seed"]]


def test_a_lost_server_stops_the_command_which_then_continues(toy, here, tmp_path):
    replay = replayed(toy)
    stop = contextlib.ExitStack()

    def dying(make_act, benchmark, episodes, config, *, workers, on_result):
        act = make_act()
        pool = EnvironmentPool(benchmark, 1)
        for number, episode in enumerate(episodes):
            if number == 1:
                stop.close()
            for result in rollout_batch(act, pool, [episode], config):
                on_result(result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate_parallel", dying)
        port = stop.enter_context(websocket_server(openpi_answer(replay)))
        with pytest.raises(RoboAlignError, match=r"no policy can be reached.*then continues"):
            score_server(server_at(port), toy, tmp_path, workers=1)
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 1
    with websocket_server(openpi_answer(replay), port=port):
        rows = score_server(server_at(port), toy, tmp_path, workers=1)
    assert rows_of(rows) == replay.results
    with pytest.raises(RoboAlignError, match="no policy can be reached"):
        score_server(server_at(port), toy, tmp_path / "other", workers=1)


def test_another_server_or_other_settings_are_refused(toy, here, tmp_path):
    replay = replayed(toy)
    part = Measurement(toy.spec, toy.settings, toy.rollout, TASKS, 1)

    def once(make_act, benchmark, episodes, config, *, workers, on_result):
        raise RoboAlignError("stopped here")

    with websocket_server(openpi_answer(replay), {"model": "a"}) as port:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "evaluate_parallel", once)
            with pytest.raises(RoboAlignError, match="stopped here"):
                score_server(server_at(port), toy, tmp_path, workers=1)
        for server, measured, problem in (
            (
                server_at(port, gripper="negate"),
                toy,
                "other settings: `gripper` as-is then, negate",
            ),
            (server_at(port), part, "other protocol: `episodes_per_task` 2 then, 1 now"),
        ):
            with pytest.raises(RoboAlignError, match=problem):
                score_server(server, measured, tmp_path, workers=1)
    with (
        websocket_server(openpi_answer(replay), {"model": "b"}) as port,
        pytest.raises(RoboAlignError, match="another server answers now: `model` was a and is b"),
    ):
        score_server(server_at(port), toy, tmp_path, workers=1)
    (tmp_path / "client.json").unlink()
    (tmp_path / "episodes.jsonl").write_text("")
    with pytest.raises(RoboAlignError, match="it holds episodes of another command"):
        score_server(server_at(1), toy, tmp_path, workers=1)


def test_a_server_swapped_during_the_run_is_refused(toy, here, tmp_path):
    replay, swap = replayed(toy), contextlib.ExitStack()

    def swapping(make_act, benchmark, episodes, config, *, workers, on_result):
        act = make_act()
        port = int(act.wire._connection.uri.rpartition(":")[2])
        swap.close()
        with websocket_server(openpi_answer(replay), {"model": "b"}, port):
            list(rollout_batch(act, EnvironmentPool(benchmark, 1), episodes[:1], config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluate_parallel", swapping)
        port = swap.enter_context(websocket_server(openpi_answer(replay), {"model": "a"}))
        with pytest.raises(RoboAlignError, match="`model` was a and is b"):
            score_server(server_at(port), toy, tmp_path, workers=1)


def test_crashes_of_the_policy_end_only_the_episodes_that_were_asked_for(toy):
    from roboalign.sim.base import EnvironmentCrash

    replay = replayed(toy)

    def act(observations, keys):
        if keys[0][:2] == (TASKS[0], toy.keys[0][1]):
            raise EnvironmentCrash("no answer")
        return np.stack([replay(seen.instruction, seen.state) for seen in observations])

    results = []
    for episode in toy.keys:
        pool = EnvironmentPool(toy.spec.make(toy.settings), 1)
        results += rollout_batch(act, pool, [episode], toy.rollout)
    assert [result.crash for result in results] == ["no answer", None, None, None]
    finished = outcomes([result for result in results if result.crash is None])
    assert finished == {key: replay.results[key] for key in toy.keys[1:]}
