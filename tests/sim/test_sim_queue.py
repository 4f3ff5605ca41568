"""The queue that local processes and the machines of a cluster share, on workers that live in this process."""

import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from walks import Walks, load_broken, load_refused, one_step

from roboalign.core.errors import RoboAlignError
from roboalign.sim import parallel
from roboalign.sim import ray as cluster
from roboalign.sim.parallel import EpisodeKey, Message, Site, WorkerDied, run_queue
from roboalign.sim.ray import ClusterConfig, evaluate_on_cluster
from roboalign.sim.rollout import EpisodeResult, RolloutConfig


class Scripted:
    """A worker that is ready after `late` looks, gives one result a look, and dies of a seed in `deadly`."""

    def __init__(self, late: int, deadly: set[int], given: list[list[int]]) -> None:
        self.open: list[EpisodeKey] = []
        self.late, self.deadly, self.given = late, deadly, given
        self.stopped = False

    @property
    def ready(self) -> bool:
        return self.late == 0

    def give(self, batch: list[EpisodeKey]) -> None:
        assert self.ready and not self.stopped
        self.given.append([seed for _, seed in batch])

    def take(self) -> Iterator[Message]:
        if self.late:
            self.late -= 1
        elif self.open:
            task, seed = self.open[0]
            if seed in self.deadly:
                raise WorkerDied("struck by lightning")
            yield EpisodeResult(task, seed, True, 1, None, 0.0)

    def stop(self) -> None:
        self.stopped = True


def run(late: list[int], seeds: set[int], deadly: set[int], size: int = 3):
    """Results by seed, the batches that were handed over, and every worker."""
    results: list[EpisodeResult] = []
    given: list[list[int]] = []
    made: list[Scripted] = []

    def start() -> Scripted:
        made.append(Scripted(late[len(made) % len(late)], deadly, given))
        return made[-1]

    site = Site(len(late), start, lambda crew: None)
    run_queue(site, [("walk", seed) for seed in seeds], size, results.append)
    assert sorted(result.seed for result in results) == sorted(seeds)
    return {result.seed: result for result in results}, given, made


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.sets(st.integers(0, 30), max_size=12),
    st.sets(st.integers(0, 30)),
    st.integers(1, 5),
)
def test_every_episode_ends_once_whatever_dies(late, seeds, deadly, size):
    results, given, _ = run(late, seeds, deadly, size)
    assert {seed for seed, result in results.items() if result.crash} == seeds & deadly
    for seed in seeds & deadly:
        assert sum(seed in batch for batch in given) == 2 and [seed] in given, "once more, alone"
        assert results[seed].crash == "the rollout process died twice (struck by lightning)"


def test_a_worker_that_gets_no_room_holds_nothing_back():
    results, given, made = run([0, 10**9], {1, 2, 3, 4}, set(), size=2)
    assert len(results) == 4 and given == [[1, 2], [3, 4]]
    assert len(made) == 2 and all(worker.stopped for worker in made)


def test_no_more_workers_are_started_than_there_are_batches():
    _, _, made = run([0] * 9, {1, 2}, set())
    assert len(made) == 2


CONFIG = RolloutConfig(replan_every=4, max_steps=20, batch_size=2)


def test_a_worker_of_the_cluster_says_what_is_installed_otherwise():
    here = cluster._installed()
    sent = cluster.pickle.dumps((load_refused, Walks(), CONFIG))
    [told] = cluster.queue_messages({**here, "mujoco": "0.1"}, sent, {}, iter([]))
    assert isinstance(told, RoboAlignError) and "has another mujoco than" in str(told)
    assert here["roboalign"] != "" and here["numpy"] == np.__version__


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """An object store that is a list."""
    kept: list[np.ndarray] = []
    ray = SimpleNamespace(
        put=lambda value: kept.append(value) or len(kept) - 1, get=kept.__getitem__
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "PIECE", 10)
    return kept


def test_files_arrive_whole_and_do_not_stay(tmp_path: Path, store: list[np.ndarray]) -> None:
    contents = {
        "head/policy.json": b"x" * 25,
        "backbone/empty": b"",
        "backbone/model": bytes(range(20)),
    }
    cargo = {}
    for number, (name, content) in enumerate(contents.items()):
        cargo[name] = tmp_path / str(number)
        cargo[name].write_bytes(content)
    found: list[Path] = []

    def load(folder: Path):
        found.append(folder)
        arrived = {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        assert arrived == contents
        return one_step

    assert cluster._loaded(load, cluster._stow(cargo)) is one_step
    assert [len(piece) for piece in store] == [10, 10, 5, 0, 10, 10]
    assert len(found) == 1 and not found[0].exists()


def test_what_a_worker_sends_is_what_a_local_one_does(store: list[np.ndarray]) -> None:
    sent = cluster.pickle.dumps((load_broken, Walks(), CONFIG))
    [told] = cluster.queue_messages(cluster._installed(), sent, {}, iter([[("walk", 0)]]))
    assert isinstance(told, str) and "the head is on fire" in told


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RoboAlignError, match=r"^hardware\.ray: Ray is not installed .*roboalign\[cluster\]"
    ):
        evaluate_on_cluster(
            load_refused, {}, Walks(), [("walk", 0)], CONFIG, ClusterConfig(), on_result=print
        )


def room(monkeypatch: pytest.MonkeyPatch, settings: ClusterConfig, *nodes: dict[str, float]) -> int:
    told = [{"Alive": True, "Resources": node} for node in nodes] + [
        {"Alive": False, "Resources": {"CPU": 99.0}}
    ]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: told))
    return cluster._room(settings)


def test_as_many_workers_as_each_machine_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = {"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}, {"object_store_memory": 1.0}
    assert room(monkeypatch, ClusterConfig(), *machines) == 11
    assert room(monkeypatch, ClusterConfig(cpus=2), *machines) == 5
    assert room(monkeypatch, ClusterConfig(cpus=3, gpus=0.5), *machines) == 2, "cores are short"
    assert room(monkeypatch, ClusterConfig(gpus=0.5), *machines) == 4, "GPUs are short"
    with pytest.raises(RoboAlignError, match="holds a worker, which needs 9 cores"):
        room(monkeypatch, ClusterConfig(cpus=9), *machines)


def test_a_crew_keeps_its_workers_until_one_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads in place of processes; the second worker ends in its second batch."""
    started: list[list[list[EpisodeKey]]] = []

    def start(*_: object) -> tuple[SimpleNamespace, Connection]:
        ours, theirs = Pipe()
        batches: list[list[EpisodeKey]] = []
        started.append(batches)

        def serve(dies: bool) -> None:
            try:
                while True:
                    batches.append(theirs.recv())
                    if dies and len(batches) == 2:
                        theirs.close()
                        return
                    for task, seed in batches[-1]:
                        theirs.send(EpisodeResult(task, seed, True, 1, None, 0.0))
            except EOFError:
                theirs.close()

        thread = Thread(target=serve, args=(len(started) == 2,), daemon=True)
        thread.start()
        return SimpleNamespace(join=thread.join, exitcode=3), ours

    monkeypatch.setattr(parallel, "_start", start)
    monkeypatch.setattr(parallel, "end_processes", lambda processes: None)
    crew = parallel.Crew(one_step, Walks(), RolloutConfig(batch_size=2), workers=2)
    for first in (0, 10, 20):
        results: list[EpisodeResult] = []
        crew.run([("walk", first + number) for number in range(4)], results.append)
        assert sorted(one.seed for one in results) == [first + number for number in range(4)]
        assert not any(one.crash for one in results)
    crew.close()
    assert len(started) in (2, 3), "workers stay; one is started again only for the dead one"
    assert len(started[0]) >= 3
