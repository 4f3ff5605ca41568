"""GR00T's protocol: keys, dtypes, arrays of both kinds, errors, late answers, and the expert's outcomes."""

import io
import json
import time

import msgpack
import numpy as np
import pytest

pytest.importorskip("zmq")

from scipy.spatial.transform import Rotation
from servers import Replay, msgpack_numpy, npy, zmq_server
from toy_on_path import PACKAGE

from roboalign.core.errors import RoboAlignError
from roboalign.harness import groot
from roboalign.harness import score as module
from roboalign.harness.groot import GrootPreset, ZmqWire, pack_value, read_message
from roboalign.harness.score import Measurement, score_server
from roboalign.harness.server import Server
from roboalign.harness.settings import ClientConfig, WorldShape, resolved
from roboalign.sim.base import EnvironmentCrash, Observation
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch

LIBERO = WorldShape("libero", ("agentview", "wrist"), 7, 8)
TASK = "annotation.human.action.task_description"
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def seen() -> Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (256, 256, 3), np.uint8) for name in LIBERO.cameras}
    return Observation(images, rng.uniform(-1, 1, 8).astype(np.float32), "Pick it up.")


def test_libero_keys_and_dtypes():
    observation = seen()
    request = GrootPreset(ClientConfig(preset="groot"), LIBERO).request(observation, ("t", 0, 0))
    sent = request["observation"]
    assert list(sent) == ["video", "state", "language"] and request["options"] is None
    assert list(sent["video"]) == ["image", "wrist_image"]
    assert sent["video"]["image"].shape == (1, 1, 256, 256, 3)
    np.testing.assert_array_equal(sent["video"]["wrist_image"][0, 0], observation.images["wrist"])
    assert list(sent["state"]) == NAMES
    assert {part.dtype for part in sent["state"].values()} == {np.dtype(np.float32)}
    assert [part.shape for part in sent["state"].values()] == [(1, 1, 1)] * 6 + [(1, 1, 2)]
    whole = np.concatenate([part[0, 0] for part in sent["state"].values()])
    np.testing.assert_array_equal(whole, observation.state)
    assert sent["language"] == {TASK: [["Pick it up."]]}


def test_flat_keys_and_euler_angles():
    observation = seen()
    config = ClientConfig(preset="groot", flat=True, state_rotation="euler")
    sent = GrootPreset(config, LIBERO).request(observation, ("t", 0, 0))["observation"]
    assert list(sent) == [
        "video.image",
        "video.wrist_image",
        *(f"state.{name}" for name in NAMES),
        TASK,
    ]
    angles = [float(sent[f"state.{name}"][0, 0, 0]) for name in ("roll", "pitch", "yaw")]
    turned = Rotation.from_euler("xyz", angles).as_rotvec()
    np.testing.assert_allclose(turned, observation.state[3:6], atol=1e-6)


def test_actions_are_put_together_in_order():
    preset = GrootPreset(ClientConfig(preset="groot"), LIBERO)
    chunk = np.arange(21.0).reshape(3, 7)
    parts = {name: chunk[None, :, number, None] for number, name in enumerate(NAMES)}
    np.testing.assert_array_equal(preset.actions(parts), chunk)
    flat = {f"action.{name}": value[0, :, 0] for name, value in reversed(parts.items())}
    np.testing.assert_array_equal(preset.actions(flat), chunk)
    with pytest.raises(EnvironmentCrash, match="no action 'yaw', but x, y"):
        preset.actions({name: value for name, value in parts.items() if name != "yaw"})
    with pytest.raises(EnvironmentCrash, match="do not fit together"):
        preset.actions({**parts, "yaw": np.zeros((1, 2, 1))})


def test_arrays_of_both_kinds_are_read():
    for array in (np.arange(6, dtype=np.float32).reshape(1, 3, 2), np.zeros((2, 0)), np.array(3)):
        for written in (npy(array), msgpack_numpy(array)):
            read = read_message(msgpack.packb({"x": written}))["x"]
            assert read.dtype == array.dtype and read.shape == array.shape
            np.testing.assert_array_equal(read, array)
    value = np.arange(6, dtype=np.float32)
    assert msgpack.unpackb(pack_value({"x": value, "n": np.int64(3)})) == {"x": npy(value), "n": 3}
    config = {"__ModalityConfig_class__": True, "as_json": '{"delta_indices": [0]}'}
    assert read_message(msgpack.packb({"video": config})) == {"video": '{"delta_indices": [0]}'}


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    return file.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + b"\0" * 8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb({"__ndarray_class__": True, "as_npy": pickled()}),
        msgpack.packb({"__ndarray_class__": True, "as_npy": claiming((1 << 30, 1 << 10))}),
        msgpack.packb({"__ndarray_class__": True, "as_npy": claiming((3,))}),
        msgpack.packb({"__ndarray_class__": True, "as_npy": "text"}),
        msgpack.packb({"__ndarray_class__": True, "as_npy": b"PK\x03\x04 no npy file"}),
        msgpack.packb({b"nd": True, b"type": "|O", b"shape": [1], b"data": b"\0" * 8}),
        msgpack.packb({b"nd": True, b"type": "<f4", b"shape": [3], b"data": b"\0" * 8}),
        msgpack.packb({b"nd": True, b"type": "<f4", b"shape": [-1], b"data": b"\0" * 8}),
        msgpack.packb({b"nd": True, b"type": "<f4", b"shape": [2.0], b"data": b"\0" * 8}),
    ],
)
def test_what_is_no_message_is_one_crash(data):
    with pytest.raises(EnvironmentCrash, match="the server: an unreadable answer"):
        read_message(data)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    from toy_benchmark.spec import ToyConfig, ToySpec

    config = RolloutConfig(replan_every=4, max_steps=7, batch_size=1)
    return Measurement(ToySpec("toy"), ToyConfig(), config, ("toy/touch-red", "toy/touch-blue"), 2)


def here(make_act, benchmark, episodes, config, *, workers, on_result):
    """Workers in this process instead of spawned ones."""
    act = make_act()
    for episode in episodes:
        for result in rollout_batch(act, EnvironmentPool(benchmark, 1), [episode], config):
            on_result(result)
    act.wire.close()


def server_at(address: str, **settings) -> Server:
    settings = {"preset": "groot", "timeout": 5.0, **settings}
    return Server(address, None, resolved(ClientConfig(**settings), "toy"))


def expert(replay: Replay, kind, endpoints: list[str]):
    """A GR00T server with the expert's actions."""

    def answer(request):
        endpoints.append(request["endpoint"])
        if request["endpoint"] == "get_modality_config":
            return {"state": {"__ModalityConfig_class__": True, "as_json": "{}"}}
        if request["endpoint"] == "reset":
            return {}
        sent = request["data"]["observation"]
        ((instruction,),) = sent["language"][TASK]
        chunk = replay(instruction, sent["state"]["state"])
        return [{"action": kind(chunk[None])}, {}]

    return answer


@pytest.mark.parametrize("kind", [npy, msgpack_numpy])
def test_the_experts_outcomes(toy, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "evaluate_parallel", here)
    replay, endpoints = Replay(toy.spec.make(toy.settings), toy.keys, toy.rollout), []
    with zmq_server(expert(replay, kind, endpoints)) as address:
        rows = score_server(server_at(address), toy, tmp_path, workers=1)
    assert {(r["task"], r["seed"]): (r["success"], r["steps"]) for r in rows} == replay.results
    assert endpoints.count("reset") == 5, "before the first answer, and before each episode"
    record = json.loads((tmp_path / "client.json").read_text())
    assert record["server"] == {"modality_config": {"state": "{}"}}


def test_errors_and_late_answers_are_crashes(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "evaluate_parallel", here)
    replay, slow = Replay(toy.spec.make(toy.settings), toy.keys, toy.rollout), [0.8]
    good = expert(replay, npy, [])

    def answer(request):
        if request["endpoint"] == "get_action" and replay.asked == 2 and slow:
            time.sleep(slow.pop())
        elif request["endpoint"] == "get_action" and replay.asked == 4 and broken:
            return {"error": broken.pop()}
        return good(request)

    broken = ["out of memory"]
    with zmq_server(answer) as address:
        rows = score_server(server_at(address, timeout=0.3), toy, tmp_path, workers=1)
    crashes = [row["crash"] for row in rows if row["crash"]]
    assert crashes == ["the server: no answer within 0.3 s", "the server: an error: out of memory"]
    for row in rows:
        if row["crash"] is None:
            assert (row["success"], row["steps"]) == replay.results[row["task"], row["seed"]]


def test_a_server_that_is_gone_stops_the_command(monkeypatch):
    monkeypatch.setattr(groot, "CONNECT_SECONDS", 0.3)
    with zmq_server(lambda request: {}) as address:
        wire = ZmqWire(address, timeout=0.3)
    began = time.monotonic()
    with pytest.raises(RoboAlignError, match=r"no policy answers within 0\.3 s.*then continues"):
        wire.ask({"observation": {}})
    assert time.monotonic() - began < 5
    with zmq_server(lambda request: [{"x": npy(np.zeros(2))}, {}], address):  # it came back
        assert list(wire.ask({"observation": {}})) == ["x"]
    wire.close()
    with pytest.raises(RoboAlignError, match="no policy answers"):
        ZmqWire(address, timeout=0.3)
    with pytest.raises(RoboAlignError, match="it is no address"):
        ZmqWire("tcp://nowhere", timeout=0.3)


def test_another_server_is_refused():
    with (
        zmq_server(lambda request: {"state": "{}"}) as address,
        pytest.raises(RoboAlignError, match="another server answers now: `modality_config`"),
    ):
        ZmqWire(address, timeout=1.0, expected={"modality_config": None})
