"""Serving: overhead over `act`, eight clients against one, malformed messages, a bounded soak, jumps at seams.

    python benchmarks/serving.py [--part overhead|clients|malformed|soak|seams] [--scale 1.0] [--rate 0]

The server is a process of its own on this machine, with a policy that sleeps as long as a model would compute: what is
measured is the serving. `--scale` multiplies the counts. Prints one line of JSON a part.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script

from benchmarks.malformed import KINDS
from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import RemotePolicy
from roboalign.serve.contract import Contract
from roboalign.serve.server import PolicyServer, serve_until_stopped
from roboalign.serve.wire import pack_message

CONTRACT = Contract(
    model="sleeper",
    cameras={"front": (224, 224), "wrist": (224, 224)},
    horizon=16,
    action_dim=7,
    state_dim=8,
    needs_state=True,
)
PARTS = ("overhead", "clients", "malformed", "soak", "seams")


class Sleeper:
    """Answers zeros after `fixed` seconds and `each` more an observation, as a pass on a GPU would."""

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed, self.each = fixed, each

    def act_batch(self, observations: Any, noise_keys: Any) -> np.ndarray:
        """float32 [B, 16, 7]."""
        if self.fixed or self.each:
            time.sleep(self.fixed + self.each * len(observations))
        return np.zeros((len(observations), 16, 7), np.float32)


@contextmanager
def server(fixed: float = 0.0, each: float = 0.0):
    """A server process; gives (port, pid)."""
    command = [sys.executable, __file__, "--serve", str(fixed), str(each)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(20)


def memory(pid: int) -> float:
    """MiB that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def seen(number: int = 0) -> SimpleNamespace:
    """A random observation."""
    rng = np.random.default_rng(number)
    images = {c: rng.integers(0, 256, (224, 224, 3), np.uint8) for c in ("front", "wrist")}
    return SimpleNamespace(images=images, state=rng.normal(size=8), instruction="pick the cube")


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used: other processes on the machine do not change them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds."""
    p50, p95 = 1000 * np.quantile(seconds, [0.5, 0.95])
    return {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2)}


def overhead(scale: float) -> dict[str, Any]:
    """Round trip minus the time within the policy."""
    one, spent = seen(), []
    with server() as (port, pid), RemotePolicy(port=port) as policy:
        for number in range(int(1100 * scale)):
            if number == int(100 * scale):
                used = (time.process_time(), processor(pid))
            began = time.perf_counter()
            policy.act(one)
            spent.append(time.perf_counter() - began)
        both = (time.process_time() - used[0], processor(pid) - used[1])
    spent = spent[int(100 * scale) :]
    client_ms, server_ms = (round(1000 * seconds / len(spent), 2) for seconds in both)
    processor_ms = {"client": client_ms, "server": server_ms}
    return {"n": len(spent), **quantiles(spent), "processor_ms": processor_ms}


def clients(scale: float) -> dict[str, Any]:
    """Answers a second of 1 and of 8 clients, a pass taking 20 ms and 1 ms more an observation."""
    rates = {}
    for count in (1, 8):
        with server(0.020, 0.001) as (port, _):
            answers = [0] * count
            until = time.monotonic() + 20 * scale

            def ask(place: int, port=port, answers=answers, until=until) -> None:
                with RemotePolicy(port=port) as policy:
                    one = seen(place)
                    while time.monotonic() < until:
                        policy.act(one)
                        answers[place] += 1

            threads = [threading.Thread(target=ask, args=(place,)) for place in range(count)]
            began = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rates[count] = sum(answers) / (time.monotonic() - began)
    return {
        "answers_a_second": {str(count): round(rate, 1) for count, rate in rates.items()},
        "ratio": round(rates[8] / rates[1], 2),
    }


def malformed(scale: float) -> dict[str, Any]:
    """Messages that are no requests, a good one after every hundred."""
    one = seen()
    good = {
        "observation/front": one.images["front"],
        "observation/wrist": one.images["wrist"],
        "observation/state": one.state,
        "prompt": one.instruction,
    }
    rng, count = np.random.default_rng(0), int(100_000 * scale)
    texts = closed = answered = 0
    with server() as (port, pid):

        def opened() -> Any:
            address = f"ws://127.0.0.1:{port}"
            client = connect(address, compression=None, max_size=None, proxy=None, legacy=True)
            client.recv()
            return client

        client, before, highest = opened(), memory(pid), 0.0
        for number in range(count):
            if number == 1000:
                before = memory(pid)  # after the first of each kind
            message = list(KINDS.values())[number % len(KINDS)](good, rng)
            try:
                client.send(message)
                texts += isinstance(client.recv(timeout=30), str)
            except ConnectionClosed:
                closed += 1
                client = opened()
            if number % 100 == 99:
                client.send(pack_message(good))
                answered += isinstance(client.recv(timeout=30), bytes)
                highest = max(highest, memory(pid))
        after = memory(pid)
    return {
        "n": count,
        "kinds": len(KINDS),
        "text_frames": texts,
        "connections_closed": closed,
        "good_answered": f"{answered} of {count // 100}",
        "memory_mib": {
            "after 1,000": round(before, 1),
            "highest": round(highest, 1),
            "end": round(after, 1),
        },
    }


def soak(scale: float, rate: float = 0.0) -> dict[str, Any]:
    """Requests of 4 clients for 3 minutes; one of them opens its connection again every 50.

    With a rate each client asks so many times a second, as a robot does, else as fast as it is answered.
    """
    answers, spent, failed = [0] * 4, [], []
    with server() as (port, pid):
        until = time.monotonic() + 180 * scale

        def ask(place: int) -> None:
            one, policy = seen(place), RemotePolicy(port=port, timeout=60)
            while time.monotonic() < until:
                began = time.perf_counter()
                try:
                    policy.act(one)
                except RoboAlignError as error:
                    failed.append(str(error))
                    continue
                spent.append(time.perf_counter() - began)
                answers[place] += 1
                if place == 0 and answers[0] % 50 == 0:
                    policy.close()
                if rate:
                    time.sleep(max(0.0, 1 / rate - (time.perf_counter() - began)))
            policy.close()

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        samples = []
        while time.monotonic() < until:
            time.sleep(min(5.0, 10 * scale))
            samples.append(memory(pid))
        for thread in threads:
            thread.join()
    tenths = [samples[i] for i in np.linspace(0, len(samples) - 1, 10).round().astype(int)]
    return {
        "requests": sum(answers),
        "seconds": 180 * scale,
        "failed": len(failed),
        "first_failure": next(iter(failed), None),
        "four_clients": quantiles(spent),
        "longest_ms": round(1000 * max(spent), 1),
        "memory_mib": [round(one, 1) for one in tenths],
        "load_at_end": round(os.getloadavg()[0], 1),
    }


def seams(scale: float) -> dict[str, Any]:
    """Jumps at seams by stitching and latency, in simulated time (benchmarks/simulated_robot.py)."""
    from benchmarks.simulated_robot import run

    table = {}
    for stitch in ("latest", "ensemble", "rtc"):
        for milliseconds in (0, 100, 200, 300):
            runs = [run(stitch, milliseconds / 1000, seed=seed) for seed in range(int(10 * scale))]
            jumps = np.concatenate([one.seam_jumps() for one in runs])
            held = sum(one.late for one in runs)
            table[f"{stitch} {milliseconds} ms"] = {
                "seams": len(jumps),
                "median": round(float(np.median(jumps)), 3),
                "p95": round(float(np.quantile(jumps, 0.95)), 3),
                "largest": round(float(jumps.max()), 3),
                "held": held,
            }
    return table


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="soak: requests a second and client"
    )
    parser.add_argument("--serve", nargs=2, type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        served = PolicyServer(Sleeper(*options.serve), CONTRACT, port=0)
        serve_until_stopped(served, lambda port: print(port, flush=True))
        return
    for part in options.part or PARTS:
        load = round(os.getloadavg()[0], 1)
        asked = {"rate": options.rate} if part == "soak" else {}
        found = globals()[part](options.scale, **asked)
        print(json.dumps({"part": part, "load_at_start": load, **found}), flush=True)


if __name__ == "__main__":
    main()
