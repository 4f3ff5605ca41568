"""RemotePolicy: the same call as a policy's, clear errors, one reconnect, no torch."""

import dataclasses
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from serving import CONTRACT, Echo, expected, seen, served
from websockets.sync.server import serve

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.wire import pack_message


def test_importing_it_needs_numpy_msgpack_and_websockets_alone():
    code = (
        "import sys, roboalign.serve.client, roboalign.serve.executor\n"
        "heavy = {'torch', 'scipy', 'pydantic', 'transformers', 'pandas', 'PIL', 'mujoco'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_act_and_act_batch_are_those_of_a_policy():
    policy = Echo()
    with served(policy) as server, RemotePolicy(port=server.port) as remote:
        chunk = remote.act(seen(1), ("task", np.int64(7), 3))
        np.testing.assert_array_equal(chunk, expected(seen(1), ("task", 7, 3)))
        assert chunk.dtype == np.float32 and chunk.flags.writeable
        several = [seen(n) for n in range(5)]
        keys = [("t", n, 0) for n in range(4)] + [None]
        batch = remote.act_batch(several, keys)
        np.testing.assert_array_equal(batch, Echo().act_batch(several, keys))
        assert policy.batches == [1, 1, 5]  # a batch is one message and one pass
        assert (remote.horizon, remote.fps, remote.metadata["model"]) == (3, 10.0, "echo")
        with pytest.raises(RoboAlignError, match="5 observations but 1 noise keys"):
            remote.act_batch(several, [None])


def test_more_than_a_message_holds_is_sent_in_several():
    contract = dataclasses.replace(CONTRACT, max_batch=2)
    policy = Echo()
    with served(policy, contract) as server, RemotePolicy(port=server.port) as remote:
        several = [seen(n) for n in range(5)]
        expected_batch = Echo().act_batch(several, [None] * 5)
        np.testing.assert_array_equal(remote.act_batch(several), expected_batch)
    assert policy.batches == [1, 2, 2, 1]


def test_faults_name_the_observation_of_a_batch():
    with served(Echo()) as server, RemotePolicy(port=server.port) as remote:
        bad = seen(1)
        bad.state[2] = np.inf
        with pytest.raises(RoboAlignError, match=r"requests\[1\].observation/state: not finite"):
            remote.act_batch([seen(0), bad])
        del bad.images["wrist"]
        with pytest.raises(RoboAlignError, match="no image of camera 'wrist'"):
            remote.act(bad)


def test_a_lost_connection_is_opened_again_once():
    with served(Echo()) as server:
        remote = RemotePolicy(port=server.port)
        remote._connection.socket.socket.shutdown(2)
        np.testing.assert_array_equal(remote.act(seen(1)), expected(seen(1)))
        assert remote.reconnects == 1
        port = server.port
    with pytest.raises(RoboAlignError, match="no policy can be reached"):
        remote.act(seen(1))
    with served(Echo(), port=port):  # it came back
        np.testing.assert_array_equal(remote.act(seen(2)), expected(seen(2)))
    with served(Echo(), dataclasses.replace(CONTRACT, model="another"), port=port):
        for _ in range(2):  # for good
            with pytest.raises(RoboAlignError, match=r"another policy \(another, was echo\)"):
                remote.act(seen(1))


def test_a_late_answer_is_never_taken_for_the_next_ones():
    policy = Echo(seconds=0.6)
    with served(policy) as server:
        remote = RemotePolicy(port=server.port, timeout=0.2)
        with pytest.raises(RoboAlignError, match=r"no answer within 0\.2 s"):
            remote.act(seen(1))
        policy.seconds = 0.0
        time.sleep(0.6)
        np.testing.assert_array_equal(remote.act(seen(2)), expected(seen(2)))


@pytest.mark.parametrize(
    ("key", "problem"), [(None, "asks for a key"), ("wrong", "the key is wrong")]
)
def test_a_refused_key_is_said(key, problem):
    with (
        served(Echo(), api_key="secret-key") as server,
        pytest.raises(RoboAlignError, match=problem),
    ):
        RemotePolicy(port=server.port, api_key=key)


@pytest.mark.parametrize("first", [pack_message({}), pack_message([1]), "text", b"\xc1"])
def test_what_is_not_our_server_is_said(first):
    with serve(lambda connection: connection.send(first), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(RoboAlignError, match="does not s"):
            RemotePolicy(port=server.socket.getsockname()[1])
        server.shutdown()
        thread.join()


def test_addresses(monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # a dead proxy
    with served(Echo()) as server:
        for host in ("127.0.0.1", "localhost", f"ws://127.0.0.1:{server.port}"):
            port = None if host.startswith("ws") else server.port
            with RemotePolicy(host, port) as remote:
                assert remote.act(seen()).shape == (3, 2)
    with pytest.raises(RoboAlignError, match="no policy can be reached"):
        RemotePolicy("127.0.0.1", 9)
