"""What is recorded is what was asked and answered, and survives a kill; a replay answers with recorded actions."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import CONTRACT, Echo, expected, seen, served

from roboalign.cli.serve import api_key, camera_keys
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.episodes.episode import Camera
from roboalign.episodes.formats.lerobot import LeRobotWriter, read_lerobot
from roboalign.episodes.open import open_robot_data
from roboalign.serve.client import RemotePolicy
from roboalign.serve.recording import DatasetRecorder
from roboalign.serve.replay import Replay


def test_requests_and_answers_are_a_data_set(tmp_path):
    def ask(remote, numbers, **changed):
        for number in numbers:
            remote.act(SimpleNamespace(**(vars(seen(number)) | changed)))

    with (
        served(Echo(), recorder=DatasetRecorder(tmp_path, CONTRACT)) as server,
        RemotePolicy(port=server.port) as remote,
        RemotePolicy(port=server.port) as other,
    ):
        ask(remote, (0, 1), instruction="stack")
        ask(other, (7,), instruction="stack")
        ask(remote, (2,), instruction="stack")
        remote.reset()
        ask(remote, (3,), instruction="stack")
        ask(remote, (4,), instruction="unstack")
        with pytest.raises(RoboAlignError):
            ask(remote, (4,), state=np.full(4, np.nan))  # refused, and not recorded
        keys = [("a", n, 0) for n in (1, 2)]
        remote.act_batch([seen(n) for n in (8, 9)], keys)  # two rollouts in one message
    episodes = read_lerobot(tmp_path)
    found = {tuple(np.round(e.state[:, 0], 5)): e for e in episodes}
    wanted = {
        tuple(np.round([seen(n).state[0] for n in numbers], 5)): numbers
        for numbers in ((0, 1, 2), (7,), (3,), (4,), (8,), (9,))
    }
    assert found.keys() == wanted.keys() and len(episodes) == 6
    answers = {row["episode_id"]: row for row in read_jsonl(tmp_path / "answers.jsonl")}
    for key, numbers in wanted.items():
        episode = found[key]
        row = answers[episode.episode_id]
        for t, number in enumerate(numbers):
            one = seen(number)
            one.instruction = episode.instruction
            noise_key = row["noise_keys"][t]
            chunk = expected(one, noise_key)
            np.testing.assert_array_equal(episode.frame("wrist", t), one.images["wrist"])
            np.testing.assert_array_equal(episode.state[t], one.state)
            np.testing.assert_array_equal(episode.actions[t], chunk[0])
            np.testing.assert_array_equal(np.float32(row["chunks"][t]), chunk)
    assert {e.instruction for e in episodes} == {"stack", "unstack", "task 8", "task 9"}
    continued = DatasetRecorder(tmp_path, CONTRACT)  # a second server into the same folder
    with served(Echo(), recorder=continued) as server, RemotePolicy(port=server.port) as remote:
        ask(remote, (5,), instruction="stack")
    assert len(read_lerobot(tmp_path)) == 7


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RoboAlignError, match="holds other files"):
        DatasetRecorder(tmp_path, CONTRACT)
    with pytest.raises(RoboAlignError, match="one number"):
        DatasetRecorder(tmp_path / "new", dataclasses.replace(CONTRACT, action_dim=1))


def test_where_recording_fails_the_robot_goes_on_and_the_end_says_so(tmp_path, capsys):
    recorder = DatasetRecorder(tmp_path, CONTRACT)
    (tmp_path / "answers.jsonl").mkdir()
    with (
        pytest.raises(RoboAlignError, match=r"cannot be used|file belongs"),
        served(Echo(), recorder=recorder) as server,
        RemotePolicy(port=server.port) as remote,
    ):
        remote.act(seen(1))
        remote.reset()
        while recorder.fault is None:
            time.sleep(0.01)
        np.testing.assert_array_equal(remote.act(seen(2)), expected(seen(2)))
    assert "recording stopped" in capsys.readouterr().err


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from serving import CONTRACT, Echo
from roboalign.serve.recording import DatasetRecorder
from roboalign.serve.server import PolicyServer, serve_until_stopped
server = PolicyServer(Echo(), CONTRACT, port=0, recorder=DatasetRecorder(sys.argv[2], CONTRACT))
serve_until_stopped(server, lambda port: print(port, flush=True))
"""


def test_a_kill_loses_no_finished_episode(tmp_path):
    folder = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline())
        with RemotePolicy(port=port) as remote:
            remote.act(seen(1)), remote.act(seen(1))
        remote.act(seen(2))  # an episode that is open
        until = time.monotonic() + 30
        while not (folder / "meta/info.json").is_file() and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (episode,) = read_lerobot(folder)
    assert len(episode) == 2 and episode.instruction == "task 1"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A data set of two tasks with a 2-number action and a 3-number state in metres."""
    folder = tmp_path_factory.mktemp("data") / "robot"
    writer = LeRobotWriter(
        folder,
        fps=20,
        cameras={"top": (6, 8)},
        action_names=("dx", "gripper"),
        state_names=("x", "y", "opening"),
    )
    rng = np.random.default_rng(0)
    for number, instruction in enumerate(("push the cube", "push the cube", "lift the cube")):
        writer.add(
            episode_id=f"robot/{number}",
            task=instruction,
            instruction=instruction,
            actions=rng.normal(size=(9, 2)),
            state=rng.uniform(0.1, 0.4, size=(9, 3)),
            frames={"top": rng.integers(0, 256, (9, 8, 6, 3), np.uint8)},
            cameras={"top": Camera("top", 6, 8)},
        )
    writer.finalize()
    return folder


def test_replay_answers_with_the_recorded_chunk_and_finds_wrong_units(recorded):
    replay = Replay(open_robot_data(recorded), horizon=4)
    contract = replay.contract
    assert (contract.fps, contract.cameras) == (20.0, {"top": (8, 6)})
    assert contract.action_names == ("dx", "gripper")
    with served(replay, contract) as server, RemotePolicy(port=server.port) as remote:
        for episode in read_lerobot(recorded):
            for t in (0, 3, 8):
                one = SimpleNamespace(
                    images={"top": episode.frame("top", t)},
                    state=episode.state[t],
                    instruction=episode.instruction,
                )
                np.testing.assert_array_equal(remote.act(one), episode.chunk(t, 4))
        one.state = episode.state[0] * 1000  # millimetres
        with pytest.raises(RoboAlignError, match=r"x is \d+.*recorded are 0\.1.*check the unit"):
            remote.act(one)
        one.state, one.instruction = episode.state[0], "dance"
        with pytest.raises(RoboAlignError, match="send one of its 2: lift the cube; push the"):
            remote.act(one)


def test_the_command_serves_a_replay_and_stops_cleanly(recorded, tmp_path):
    command = [sys.executable, "-m", "roboalign", "serve", "--replay", str(recorded), "--port", "0"]
    command += ["--api-key-env", "ROBOT_KEY", "--key", "top=observation/image", "--horizon", "5"]
    command += ["--record", str(tmp_path / "kept")]
    environment = os.environ | {"ROBOT_KEY": "a-long-secret"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    guard = threading.Timer(120, process.kill)
    guard.start()
    try:
        said = ""
        while "answers 5 actions" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert "observation/image: uint8 [8, 6, 3]" in said and "a-long-secret" not in said
        port = int(re.search(r"listening on ws://127\.0\.0\.1:(\d+)", said)[1])
        episode = read_lerobot(recorded)[1]
        one = SimpleNamespace(
            images={"top": episode.frame("top", 2)},
            state=episode.state[2],
            instruction=episode.instruction,
        )
        with RemotePolicy(port=port, api_key="a-long-secret") as remote:
            np.testing.assert_array_equal(remote.act(one), episode.chunk(2, 5))
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0 and "1 requests, 0 refused" in rest and "1 episodes" in rest
    finally:
        guard.cancel()
        process.kill()
        process.wait()
    assert len(read_lerobot(tmp_path / "kept")) == 1


def test_options_are_checked(monkeypatch):
    monkeypatch.delenv("ROBOT_KEY", raising=False)
    for key in (None, "", "short", "with space ", "nön-ascii-key"):
        if key is not None:
            monkeypatch.setenv("ROBOT_KEY", key)
        with pytest.raises(RoboAlignError, match="holds no key"):
            api_key("ROBOT_KEY")
    assert api_key(None) is None
    assert camera_keys(["a=x/y", "b=z=1"]) == {"a": "x/y", "b": "z=1"}
    for bad in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(RoboAlignError, match="CAMERA=KEY"):
            camera_keys(bad)
