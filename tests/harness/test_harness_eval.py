"""The command: Meta-WorldShape's experts over openpi's wire, our own server as in process, and what it prints."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from servers import Replay, websocket_server
from serving import served
from toy_on_path import PACKAGE, write_metadata

import roboalign
from roboalign.actions.normalize import ActionStats
from roboalign.cli.main import main
from roboalign.core.state import read_records
from roboalign.evaluate.success import EpisodeState
from roboalign.mllm.load import load_mllm
from roboalign.mllm.shipped import pretrained_folder
from roboalign.serve.describe import contract_of
from roboalign.serve.server import PolicyServer
from roboalign.sim import registry
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy

METAWORLD_TASKS = ("button-press-topdown-v3", "drawer-open-v3", "reach-v3")


@pytest.fixture
def toy(monkeypatch):
    """The toy benchmark as an installed one."""
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    from toy_benchmark.spec import ToySpec

    registry.register_benchmark("toy", ToySpec)


def eval_command(*words: object) -> int:
    return main(["eval", *map(str, words)])


def records(folder: Path) -> dict:
    rows = read_records(folder / "episodes.jsonl", EpisodeState)
    return {
        (row["task"], row["seed"]): (row["success"], row["steps"], row["crash"]) for row in rows
    }


def test_metaworlds_experts_over_openpis_wire(tmp_path, capsys):
    config = RolloutConfig(replan_every=8, max_steps=60, batch_size=1)
    seed = 1_000_000
    keys = [(task, seed) for task in METAWORLD_TASKS]
    replay = Replay(MetaWorld(MetaWorldConfig(image_size=64)), keys, config)
    assert 0 < sum(success for success, _ in replay.results.values()) < 3

    def answer(request):
        assert list(request) == ["image", "state", "prompt"] and request["image"].shape[0] == 224
        return {"actions": replay(request["prompt"], request["state"])}

    with websocket_server(answer) as port:
        status = eval_command(
            *(f"ws://127.0.0.1:{port}", "--benchmark", "metaworld", "--out", tmp_path / "out"),
            *("--tasks", *METAWORLD_TASKS, "--episodes", 1, "--workers", 1, "--max-steps", 60),
            *("--set", "image_size=64", "--set", "render=fast"),
        )
    assert status == 0
    expected = {key: (*outcome, None) for key, outcome in replay.results.items()}
    assert records(tmp_path / "out") == expected
    said = capsys.readouterr()
    assert "fast, 64 px, camera corner2_near" in " ".join(said.out.split())
    assert "first request: button-press-topdown-v3 seed 1000000" in said.err


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> tuple[HeadPolicy, Path]:
    """The shipped model under a head that is not trained, and its folder."""
    torch.manual_seed(0)
    mllm = load_mllm(pretrained_folder())
    width = mllm.model.config.get_text_config().hidden_size
    small = {"width": 32, "heads": 2, "layers": 2, "vlm_inner_width": 32, "vlm_heads": 2}
    shape = HeadShape(vlm_width=width, action_dim=4, state_dim=4, horizon=8)
    head = FlowMatchingHead(HeadConfig(**small, proprioception=True), shape)
    rng = np.random.default_rng(0)
    actions = ActionStats.fit(rng.uniform(-1, 1, (50, 4)))
    states = ActionStats.fit(rng.uniform(-0.25, 0.25, (50, 4)))
    made = HeadPolicy(mllm, head.eval(), View(layer=2, cameras=("top",)), actions, states)
    folder = tmp_path_factory.mktemp("run") / "policy"
    made.save(folder)
    return made, folder


def test_our_own_server_solves_the_episodes_that_the_policy_solves(toy, policy, tmp_path, capsys):
    from toy_benchmark.spec import ToyConfig
    from toy_benchmark.world import Toy

    inside, folder = policy
    keys = [(f"toy/touch-{color}", 1_000_000 + n) for color in ("red", "blue") for n in range(5)]
    config = RolloutConfig(replan_every=4, max_steps=24, batch_size=5)
    pool = EnvironmentPool(Toy(ToyConfig(radius=0.15)), 10)
    results = list(rollout_batch(inside.act_batch, pool, keys, config))
    expected = {(r.task, r.seed): (r.success, r.steps, None) for r in results}
    assert 0 < sum(success for success, _, _ in expected.values()) < len(keys)
    with served(inside, contract_of(inside, folder)) as server:
        assert isinstance(server, PolicyServer)
        words = (
            *(f"ws://127.0.0.1:{server.port}", "--benchmark", "toy", "--preset", "roboalign"),
            *("--tasks", "train", "--episodes", 5, "--workers", 2, "--max-steps", 24),
            *("--replan-every", 4, "--set", "radius=0.15", "--out", tmp_path / "out"),
        )
        assert eval_command(*words) == 0
    assert records(tmp_path / "out") == expected
    first = capsys.readouterr().out
    solved = sum(success for success, _, _ in expected.values())
    assert f"{solved}/10 = {10 * solved:.1f}%" in first
    assert eval_command(*words) == 0  # nothing is missing, so no server is needed
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "problem", "fix"),
    [
        (["recipe.yaml"], "'recipe.yaml' is no address", "run RECIPE --until eval"),
        (["ws://h:1", "--tasks", "lift"], "metaworld has no task 'lift'", "its sets are ml45"),
        (["ws://h:1", "--set", "image_size"], "a setting is KEY=VALUE", "image_size=256"),
        (["ws://h:1", "--set", "imagesize=3"], "unknown key `imagesize`", "`image_size`?"),
        (["ws://h:1", "--key", "corner2"], "a key is CAMERA=KEY", "--key front"),
        (["ws://h:1", "--image-size", "2"], "`image_size`", "correct"),
        (["ws://h:1", "--send-state"], "send_state says nothing to preset openpi", "correct one"),
        (
            ["ws://h:1", "--preset", "starvla", "--key", "a=b"],
            "keys says nothing to preset starvla; it is a setting of openpi",
            "correct one",
        ),
        (["ws://h:1", "--preset", "groot"], "is no address of a server of preset groot", "tcp://"),
        (["ws://h:1", "--episodes", "0"], "0 episodes", "give 1 or more"),
        (["ws://127.0.0.1:9"], "no policy can be reached", "start the server"),
    ],
)
def test_faults_are_one_message(words, problem, fix, tmp_path, capsys):
    (tmp_path / "client.json").write_text(
        '{"server": {}, "settings": {}, "tasks": [], "versions": {}}'
    )
    out = tmp_path / "new" if words == ["ws://127.0.0.1:9"] else tmp_path
    assert eval_command(*words, "--benchmark", "metaworld", "--out", out) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert problem in first and fix in second


def test_libero_keeps_its_own_protocol(tmp_path, capsys):
    (tmp_path / "client.json").write_text(
        '{"server": {}, "settings": {}, "tasks": [], "versions": {}}'
    )
    words = ("ws://h:1", "--benchmark", "libero_object", "--out", tmp_path, "--replan-every", 8)
    assert eval_command(*words) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "libero_object has its own protocol, whose replan_every is 5" in first
    assert "--set replan_every=" in second


def test_a_killed_command_continues(tmp_path, monkeypatch):
    """Killed after the first episode, in a process of its own; the same command does the rest."""
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    from toy_benchmark.world import Toy

    keys = [(f"toy/touch-{color}", 1_000_000 + n) for color in ("red", "blue") for n in range(2)]
    replay = Replay(Toy(), keys, RolloutConfig(replan_every=4, max_steps=7, batch_size=1))
    out, holding = tmp_path / "out", threading.Event()
    path = [str(Path(roboalign.__file__).parents[1]), *write_metadata(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def answer(request):
        if (out / "episodes.jsonl").exists() and not holding.is_set():
            holding.wait(60)  # the second episode waits until the command is killed
        return {"actions": replay(request["prompt"], request["state"])}

    with websocket_server(answer) as port:
        words = (
            *(sys.executable, "-m", "roboalign", "eval", f"ws://127.0.0.1:{port}"),
            *("--benchmark", "toy", "--tasks", "train", "--episodes", "2", "--workers", "1"),
            *("--replan-every", "4", "--max-steps", "7", "--out", str(out)),
        )
        first = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while not (out / "episodes.jsonl").exists() and time.monotonic() - began < 120:
            time.sleep(0.05)
        first.kill()
        first.wait(20)
        holding.set()
        assert len(records(out)) == 1
        second = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert records(out) == {key: (*outcome, None) for key, outcome in replay.results.items()}
    assert "rollouts] 3/3" in second.stderr
