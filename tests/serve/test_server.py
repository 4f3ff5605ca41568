"""The server as clients see it: answers, errors, batches, health, keys, drains."""

import dataclasses
import http.client
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import CONTRACT, Echo, expected, request, seen, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.server import PolicyServer, is_loopback
from roboalign.serve.wire import pack_message, unpack_message


def opened(server, **named):
    named = {"compression": None, "max_size": None, "proxy": None} | named
    return connect(f"ws://127.0.0.1:{server.port}", **named)


def test_a_plain_client_gets_metadata_then_a_reply_to_each_request():
    with served(Echo()) as server, opened(server) as client:
        metadata = unpack_message(client.recv())
        assert metadata["observation"]["observation/front"] == {
            "camera": "front",
            "dtype": "uint8",
            "shape": [8, 6, 3],
            "required": True,
        }
        assert metadata["observation"]["observation/state"]["names"] == ["x", "y", "z", "gripper"]
        assert (metadata["horizon"], metadata["fps"], metadata["model"]) == (3, 10.0, "echo")
        for number in range(3):
            client.send(pack_message(request(number)))
            reply = unpack_message(client.recv())
            np.testing.assert_array_equal(reply["actions"], expected(seen(number)))
            assert reply["actions"].dtype == np.float32
            assert reply["server_timing"]["infer_ms"] >= reply["policy_timing"]["infer_ms"] >= 0
            assert ("prev_total_ms" in reply["server_timing"]) == (number > 0)
            arrays = [key for key, value in reply.items() if isinstance(value, np.ndarray)]
            assert arrays == ["actions"]  # openpi's ActionChunkBroker slices every array


def test_unmodified_openpi_client():
    client = pytest.importorskip("openpi_client.websocket_client_policy")
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    with served(Echo(), api_key="secret-key") as server:
        policy = client.WebsocketClientPolicy("127.0.0.1", server.port, api_key="secret-key")
        assert policy.get_server_metadata()["horizon"] == 3
        np.testing.assert_array_equal(policy.infer(request(4))["actions"], expected(seen(4)))
        wrong = request(4) | {"observation/state": np.full(4, np.nan)}
        with pytest.raises(RuntimeError, match="observation/state: not finite"):
            policy.infer(wrong)
        steps = broker.ActionChunkBroker(policy, action_horizon=3)
        taken = [steps.infer(request(5))["actions"] for _ in range(3)]
        np.testing.assert_array_equal(np.stack(taken), expected(seen(5)))
        policy._ws.close()


BAD = {
    "missing camera": ({"observation/wrist": None}, "observation/wrist: it is missing"),
    "unknown key": ({"observation/writs": np.zeros(1)}, "did you mean observation/wrist"),
    "float image": ({"observation/front": np.zeros((8, 6, 3))}, "float64 [8, 6, 3]"),
    "channels first": ({"observation/front": np.zeros((3, 8, 6), np.uint8)}, "uint8 [3, 8, 6]"),
    "other size": ({"observation/front": np.zeros((6, 8, 3), np.uint8)}, "send uint8 [8, 6, 3]"),
    "list image": ({"observation/front": [1, 2]}, "a list instead of an array"),
    "alpha": ({"observation/front": np.zeros((8, 6, 4), np.uint8)}, "uint8 [8, 6, 4]"),
    "no state": ({"observation/state": None}, "observation/state: it is missing"),
    "short state": ({"observation/state": np.zeros(3)}, "3 numbers"),
    "two states": ({"observation/state": np.zeros((1, 4))}, "its shape is [1, 4]"),
    "NaN": ({"observation/state": np.array([0, np.nan, 0, 0])}, "not finite at [1]"),
    "too large": ({"observation/state": np.array([0, 0, 0, 1e300])}, "not finite at [3]"),
    "text state": ({"observation/state": np.array(["a"] * 4)}, "<U1 instead of numbers"),
    "no prompt": ({"prompt": None}, "prompt: it is missing"),
    "empty prompt": ({"prompt": " "}, "prompt: a text of 1 characters"),
    "long prompt": ({"prompt": "a" * 1001}, "text of 1001 characters"),
    "number prompt": ({"prompt": 3}, "prompt: a int"),
    "bad text": ({"prompt": np.frombuffer(b"\xff\xff\xff\xff", "<U1").reshape(())}, "no Unicode"),
    "noise key": ({"noise_key": [1.5]}, "noise_key: not a key"),
    "guide": ({"rtc/previous": np.zeros((1, 2))}, "rtc/previous: this key is not read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_one_short_text_and_the_connection_lives(name):
    changed, problem = BAD[name]
    bad = {key: value for key, value in (request() | changed).items() if value is not None}
    with served(Echo()) as server, opened(server) as client:
        client.recv()
        client.send(pack_message(bad))
        said = client.recv()
        assert isinstance(said, str) and problem in said and len(said) <= 400 and "\n" not in said
        assert "Traceback" not in said and "Fix: " in said
        client.send(pack_message(request()))
        np.testing.assert_array_equal(unpack_message(client.recv())["actions"], expected(seen()))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", pack_message([1]), "hello", pack_message({"requests": []})]
)
def test_what_is_no_request_is_refused_alike(data):
    with served(Echo()) as server, opened(server) as client:
        client.recv()
        client.send(data)
        assert isinstance(client.recv(), str)
        client.send(pack_message(request()))
        assert isinstance(client.recv(), bytes)


def test_prompt_has_a_default_and_cameras_other_keys():
    contract = dataclasses.replace(CONTRACT, prompt="task 0", keys={"front": "observation/image"})
    sent = {"observation/image" if k.endswith("front") else k: v for k, v in request().items()}
    del sent["prompt"]
    with served(Echo(), contract) as server, opened(server) as client:
        assert (
            unpack_message(client.recv())["observation"]["observation/image"]["camera"] == "front"
        )
        client.send(pack_message(sent))
        np.testing.assert_array_equal(unpack_message(client.recv())["actions"], expected(seen()))


def test_requests_that_come_together_are_one_batch_with_the_answers_of_each_alone():
    policy = Echo(seconds=0.1)
    with served(policy) as server, ThreadPoolExecutor(6) as pool:
        clients = [RemotePolicy(port=server.port) for _ in range(6)]
        for _ in range(3):
            answers = list(pool.map(lambda n: clients[n].act(seen(n), ("k", n)), range(6)))
            for number, answer in enumerate(answers):
                np.testing.assert_array_equal(answer, expected(seen(number), ("k", number)))
        for client in clients:
            client.close()
    assert sum(policy.batches) == 19 and len(policy.batches) < 12  # one warms up


def test_only_where_others_may_ask_does_a_request_wait():
    def seconds(policy):
        began = time.perf_counter()
        policy.act(seen())
        return time.perf_counter() - began

    with served(Echo(), window=1.0) as server, RemotePolicy(port=server.port) as policy:
        assert seconds(policy) < 0.9
        with RemotePolicy(port=server.port):
            assert seconds(policy) >= 0.9
        time.sleep(0.2)
        assert seconds(policy) < 0.9


class Picky(Echo):
    """Fails for one instruction, and the whole batch with it."""

    def act_batch(self, observations, noise_keys):
        if any(one.instruction == "task 3" for one in observations):
            raise KeyError("secret detail")
        return super().act_batch(observations, noise_keys)


def test_one_fault_in_a_batch_is_its_own_clients(capsys):
    def ask(number):
        try:
            return clients[number].act(seen(number))
        except RoboAlignError as error:
            return str(error)

    with served(Picky(seconds=0.05)) as server, ThreadPoolExecutor(5) as pool:
        clients = [RemotePolicy(port=server.port) for _ in range(5)]
        for _ in range(2):
            answers = list(pool.map(ask, range(5)))
            assert "the policy failed (KeyError)" in answers.pop(3)
            for number, answer in zip((0, 1, 2, 4), answers):
                np.testing.assert_array_equal(answer, expected(seen(number)))
        for client in clients:
            client.close()
    assert "secret detail" in capsys.readouterr().err  # for who runs the server


@pytest.mark.parametrize(
    ("chunk", "problem"),
    [(np.full((1, 3, 2), np.nan), "not finite"), (np.zeros((1, 2, 2)), "instead of [1, 3, 2]")],
)
def test_what_no_robot_may_execute_is_never_sent(chunk, problem):
    class Broken(Echo):
        def act_batch(self, observations, noise_keys):
            if observations[0].instruction == "warm up":
                return super().act_batch(observations, noise_keys)
            return chunk.astype(np.float32)

    with (
        served(Broken()) as server,
        RemotePolicy(port=server.port) as policy,
        pytest.raises(RoboAlignError) as caught,
    ):
        policy.act(seen())
    assert problem in str(caught.value)


def test_a_policy_that_cannot_answer_is_not_served():
    class Broken(Echo):
        def act_batch(self, observations, noise_keys):
            raise RoboAlignError("no weights", where="policy")

    with pytest.raises(RoboAlignError, match="no weights"), served(Broken()):
        pass


def test_health_and_plain_requests():
    with served(Echo()) as server:
        for path, status, body in (("/healthz", 200, b"OK\n"), ("/", 426, None)):
            plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            plain.request("GET", path)
            answer = plain.getresponse()
            assert answer.status == status and (body is None or answer.read() == body)
            plain.close()


def test_key_origin_and_room():
    with served(Echo(), api_key="secret-key", max_connections=1) as server:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret-key"}):
            with pytest.raises(InvalidStatus, match="HTTP 401"):
                opened(server, additional_headers=headers)
        right = {"Authorization": "Api-Key secret-key"}
        with pytest.raises(InvalidStatus, match="HTTP 403"):
            opened(server, additional_headers=right, origin="https://example.org")
        with (
            opened(server, additional_headers=right),
            pytest.raises(InvalidStatus, match="HTTP 503"),
        ):
            opened(server, additional_headers=right)


def test_beyond_loopback_only_with_a_key():
    for host in ("0.0.0.0", "::", "192.0.2.1", "robot.local", ""):
        with pytest.raises(RoboAlignError, match="--api-key-env"):
            PolicyServer(Echo(), CONTRACT, host=host)
    PolicyServer(Echo(), CONTRACT, host="0.0.0.0", api_key="secret-key")
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))


def test_a_port_in_use_is_named():
    with (
        served(Echo()) as server,
        pytest.raises(RoboAlignError, match="cannot be listened on"),
        served(Echo(), port=server.port),
    ):
        pass


def test_a_message_too_large_closes_its_connection_alone():
    with served(Echo()) as server, opened(server) as large, opened(server) as other:
        large.recv(), other.recv()
        with pytest.raises(ConnectionClosed):
            large.send(b"\0" * (CONTRACT.limit + 1))
            large.recv()
        other.send(pack_message(request()))
        assert isinstance(other.recv(), bytes)


def test_half_a_message_and_a_reset_connection_leave_the_others_alone():
    with served(Echo()) as server, opened(server) as other:
        other.recv()
        half = opened(server)
        half.recv()
        half.socket.sendall(b"\x82\xfe\x00\x7d\0\0\0\0abc")  # announces 125 bytes, sends 3
        other.send(pack_message(request()))
        assert isinstance(other.recv(), bytes)
        half.socket.shutdown(2)
        half.close()
        asked = opened(server)
        asked.recv()
        asked.send(pack_message(request()))
        asked.socket.shutdown(2)  # gone before its answer
        asked.close()
        other.send(pack_message(request()))
        assert isinstance(other.recv(), bytes)


def test_stopping_answers_what_is_under_way_and_closes():
    with served(Echo(seconds=0.5)) as server:
        policy, idle = RemotePolicy(port=server.port), opened(server)
        idle.recv()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(policy.act, seen(2))
            time.sleep(0.2)
            server.stop()
            np.testing.assert_array_equal(answer.result(5), expected(seen(2)))
        with pytest.raises(ConnectionClosed):
            idle.recv(timeout=5)
        with pytest.raises(RoboAlignError, match="no policy can be reached"):
            policy.act(seen(2))


def test_a_second_stop_does_not_wait():
    with served(Echo(seconds=1.5)) as server:
        policy = RemotePolicy(port=server.port)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(policy.act, seen(2))
            time.sleep(0.2)
            began = time.monotonic()
            server.stop()
            server.stop()
            with pytest.raises(RoboAlignError):
                answer.result(5)
        assert time.monotonic() - began < 1.2


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from serving import CONTRACT, Echo
from roboalign.serve.server import PolicyServer, serve_until_stopped
server = PolicyServer(Echo(seconds=0.4), CONTRACT, port=0)
serve_until_stopped(server, lambda port: print(port, flush=True))
print("ended after", server.requests, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains(number):
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, here], stdout=subprocess.PIPE, text=True
    )
    try:
        policy = RemotePolicy(port=int(process.stdout.readline()))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(policy.act(seen(1))))
        asking.start()
        time.sleep(0.15)
        process.send_signal(number)
        asking.join(10)
        np.testing.assert_array_equal(answers[0], expected(seen(1)))
        assert process.wait(10) == 0 and "ended after 1" in process.stdout.read()
    finally:
        process.kill()
        process.wait()
