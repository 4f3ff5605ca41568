"""Rollouts on two Ray nodes of this machine; skipped where Ray (extra `cluster`) is not installed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from walks import Strides, Walks, load_broken, load_refused, slow_strides

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, read_jsonl
from roboalign.sim.parallel import EpisodeKey
from roboalign.sim.ray import ClusterConfig, evaluate_on_cluster
from roboalign.sim.rollout import EnvironmentPool, EpisodeResult, RolloutConfig, rollout_batch

pytest.importorskip("ray")

CONFIG = RolloutConfig(replan_every=4, max_steps=40, batch_size=2)
SETTINGS = {
    "PYTHONPATH": str(Path(__file__).parent),  # workers import walks.py
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3",  # after which Ray ends a program that has lost its cluster
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with a core each. Its sockets' paths must be short."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
    ):
        for name, value in {**SETTINGS, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node)
        try:
            made.add_node(num_cpus=1, object_store_memory=100_000_000)
            yield made
        finally:
            made.shutdown()


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "scale.txt").write_text("1.5")
    return {"weights/scale.txt": tmp_path / "scale.txt"}


def record(result: EpisodeResult) -> dict[str, Any]:
    return {name: value for name, value in result.record().items() if name != "seconds"}


def on_cluster(
    cluster: Any,
    episodes: list[EpisodeKey],
    weights: dict[str, Path],
    load: Any = Strides,
    died: str = "",
) -> list[EpisodeResult]:
    results: list[EpisodeResult] = []
    settings = ClusterConfig(address=cluster.address)
    evaluate_on_cluster(
        load, weights, Walks(died), episodes, CONFIG, settings, on_result=results.append
    )
    return results


def test_records_and_films_are_those_of_one_local_process(
    cluster: Any, weights: dict[str, Path], tmp_path: Path
):
    episodes = [("walk", seed) for seed in [*range(6), 13, 66]]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "scale.txt").write_text("1.5")
    here = list(
        rollout_batch(Strides(tmp_path), EnvironmentPool(Walks(), limit=8), episodes, CONFIG)
    )
    there = on_cluster(cluster, episodes, weights)
    by_seed = {result.seed: result for result in there}
    assert len(there) == len(episodes) and {result.crash for result in there} > {None}
    for result in here:
        assert record(by_seed[result.seed]) == record(result)
        assert [frame.tolist() for frame in by_seed[result.seed].film] == [
            frame.tolist() for frame in result.film
        ]
    assert len({result.steps for result in here}) > 3, "the strides differ"


def test_episodes_of_a_dead_worker_run_once_more_alone(
    cluster: Any, weights: dict[str, Path], tmp_path: Path
):
    results = on_cluster(
        cluster, [("walk", seed) for seed in (0, 1, 77, 78)], weights, died=str(tmp_path / "died")
    )
    assert {result.seed: result.success for result in results} == {
        0: True,
        1: True,
        77: False,
        78: True,
    }
    [crash] = [result.crash for result in results if result.crash]
    assert crash.startswith("the rollout process died twice (")


def test_a_fault_of_the_policy_is_the_one_that_local_workers_show(
    cluster: Any, weights: dict[str, Path]
):
    with pytest.raises(
        RoboAlignError,
        match=r"^policy\.json: the policy has no statistics Fix: train the head again$",
    ):
        on_cluster(cluster, [("walk", 0)], weights, load=load_refused)
    with pytest.raises(RuntimeError, match=r"(?s)in act\n.*the head is on fire"):
        on_cluster(cluster, [("walk", 0)], weights, load=load_broken)


COMMAND = """
import sys
from pathlib import Path
from roboalign.core.files import append_jsonl, read_jsonl
from roboalign.sim.ray import ClusterConfig, evaluate_on_cluster
from roboalign.sim.rollout import RolloutConfig
from walks import Walks, slow_strides
if __name__ == "__main__":
    address, file, scale = sys.argv[1:]
    evaluate_on_cluster(slow_strides, {"weights/scale.txt": Path(scale)}, Walks(), [("walk", s) for s in range(8)],
                        RolloutConfig(replan_every=4, max_steps=40, batch_size=1), ClusterConfig(address=address),
                        on_result=lambda result: append_jsonl(file, result.record()))
"""


def test_a_killed_command_goes_on_and_a_lost_cluster_is_one_error(
    cluster: Any, weights: dict[str, Path], tmp_path: Path
):
    file, script = tmp_path / "episodes.jsonl", tmp_path / "command.py"
    script.write_text(COMMAND)
    first = subprocess.Popen(
        [sys.executable, str(script), cluster.address, str(file), *map(str, weights.values())]
    )
    try:
        while len(read_jsonl(file)) < 2:
            assert first.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    done = {row["seed"] for row in read_jsonl(file)}
    assert 2 <= len(done) < 8

    left = [("walk", seed) for seed in range(8) if seed not in done] + [
        ("walk", seed) for seed in range(100, 900)
    ]

    def keep(result: EpisodeResult) -> None:
        append_jsonl(file, result.record())
        if len(read_jsonl(file)) == 10:
            for process in cluster.head_node.all_processes["gcs_server"]:
                process.process.kill()

    with pytest.raises(
        RoboAlignError,
        match=r"^hardware\.ray: the Ray cluster .* was lost: .*stays and does not run",
    ):
        evaluate_on_cluster(
            slow_strides,
            weights,
            Walks(),
            left,
            CONFIG,
            ClusterConfig(address=cluster.address),
            on_result=keep,
        )
    seeds = [row["seed"] for row in map(json.loads, file.read_text().splitlines())]
    assert len(seeds) == len(set(seeds)) >= 10 and set(range(8)) <= set(seeds)
