"""From a study to the table: two fake policies in a toy world, driven by RemotePolicy alone, through a kill -9."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import CONTRACT, seen, served

from roboalign.cli.main import main
from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.trial.plan import read_key, read_plan

STUDY = """
name: toy
arms: {base: "ws://127.0.0.1:%d", aligned: "ws://127.0.0.1:%d"}
tasks:
  reach: {instruction: reach the mark, success: within 0.05 of the mark, conditions: [left, right], stages: [moved]}
  push: {instruction: push to the mark, success: within 0.05 of the mark, conditions: [left, far left, right]}
trials: 6
"""
MARKS = {"left": -1.0, "far left": -2.0, "right": 1.0}


class Reacher:
    """Moves toward the mark; one that is not `able` moves away from marks on the left."""

    def __init__(self, able):
        self.able = able

    def act_batch(self, observations, noise_keys):
        chunks = []
        for one in observations:
            position, mark = one.state[0], one.state[1]
            gain = 0.5 if self.able or mark > 0 else -0.5
            chunk = np.zeros((3, 2), np.float32)
            for step in chunk:
                step[0] = gain * (mark - position)
                position += step[0]
            chunks.append(chunk)
        return np.stack(chunks)


class World:
    """A point on a line."""

    def __init__(self, condition):
        self.position, self.mark = 0.0, MARKS[condition]

    def observation(self):
        images = seen().images
        state = np.array([self.position, self.mark, 0, 0], np.float32)
        return SimpleNamespace(images=images, state=state, instruction=self.instruction)

    def episode(self, policy, instruction, chunks=4):
        """Drive; whether it succeeded."""
        self.instruction = instruction
        for _ in range(chunks):
            for action in policy.act(self.observation()):
                self.position += float(action[0])
        return abs(self.position - self.mark) < 0.05


class Operator:
    """Uses the page's requests."""

    def __init__(self, port):
        self.port = port

    def ask(self, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, headers)
        reply = connection.getresponse()
        said = json.loads(reply.read())
        connection.close()
        assert reply.status == 200, said
        return said

    def start(self):
        trial = self.ask("/state")["trial"]
        self.of = {"trial": trial["number"], "attempt": trial["attempt"], "operator": "Ada"}
        self.ask("/start", self.of)
        return trial

    def end(self, **result):
        return self.ask("/end", self.of | {"result": result})


@contextlib.contextmanager
def routing(plan):
    """(process, port for the robot, port of the page) of the command, which is killed at the end."""
    command = [sys.executable, "-m", "roboalign", "trial", "run", str(plan)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--page-port", "0", "--timeout", "30"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    try:
        for line in process.stdout:
            said += line
            if "page is" in line:
                break
        ports = re.findall(r"(?:ws|http)://127\.0\.0\.1:(\d+)", said)
        assert len(ports) == 2, said
        yield process, *map(int, ports)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_study_through_a_kill_to_the_table(tmp_path, capsys):
    with (
        served(Reacher(able=False), replace(CONTRACT, model="a")) as base,
        served(Reacher(able=True), replace(CONTRACT, model="b")) as aligned,
    ):
        study = tmp_path / "toy.yaml"
        study.write_text(STUDY % (base.port, aligned.port))
        assert main(["trial", "plan", str(study)]) == 0
        path, log = tmp_path / "toy.plan.json", tmp_path / "toy.log.jsonl"
        plan, key = read_plan(path), read_key(path)
        won = {}

        def trials(robot, page, count):
            with RemotePolicy(port=robot) as policy:
                operator = Operator(page)
                for _ in range(count):
                    trial = operator.start()
                    world = World(trial["condition"])
                    success = world.episode(policy, trial["instruction"])
                    if success:
                        operator.end(outcome="success")
                    else:
                        stage = "moved" if trial["stages"] else None
                        operator.end(outcome="failure", failure="missed the goal", stage=stage)
                    won[trial["number"]] = success

        with routing(path) as (process, robot, page):
            trials(robot, page, 9)
            operator = Operator(page)
            trial = operator.start()
            with RemotePolicy(port=robot) as policy:
                World(trial["condition"]).episode(policy, trial["instruction"], chunks=2)
                process.send_signal(signal.SIGKILL)
                process.wait()
                with pytest.raises(RoboAlignError, match="no policy can be reached"):
                    World(trial["condition"]).episode(policy, trial["instruction"])
        with log.open("ab") as file:  # what a kill in the middle of a write leaves
            file.write(b'{"row": 99, "previous": "')
        assert main(["compare", str(log)]) == 2
        assert "9 of 24 trials are done" in capsys.readouterr().err
        with routing(path) as (process, robot, page):
            operator = Operator(page)
            view = operator.ask("/state")
            assert (view["done"], view["void"]) == (9, 1)
            assert (view["trial"]["number"], view["trial"]["attempt"]) == (10, 2)
            operator.start()
            operator.end(outcome="excluded", exclusion="camera or sensor fault")
            trials(robot, page, 15)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    assert main(["compare", str(log), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["done"], result["total"], result["sessions"]) == (24, 24, 2)
    assert result["policies"] == {"base": "a", "aligned": "b"}
    arms = dict(enumerate(key.assignment, start=1))
    for arm, rows in result["arms"].items():
        for task, row in rows["tasks"].items():
            mine = [t.number for t in plan.trials if t.task == task and arms[t.number] == arm]
            assert (row["n"], row["successes"]) == (6, sum(won[n] for n in mine))
    # Six of each task: half of `reach` and two thirds of `push` have their mark on the left.
    assert [row["successes"] for row in result["arms"]["base"]["tasks"].values()] == [3, 2]
    assert result["arms"]["aligned"]["overall"]["successes"] == 12
    (pair,) = result["comparisons"]
    assert (pair["only_before"], pair["only_after"], pair["p"]) == (0, 7, 2 / 2**7)
    void = result["arms"][arms[10]]["void"]
    assert void == {"interrupted": 1, "camera or sensor fault": 1}
    assert main(["compare", str(log)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "all tasks 5/12 = 41.7% 12/12 = 100.0%" in text
    assert "shown: aligned is better at alpha 0.05" in text
