"""A short version of fuzz.py: forty fixed seeds of the formats whose commands are quick; and that faults are seen."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fuzz import Worker, format_of
from fuzz_commands import Done
from fuzz_files import formats
from fuzz_mutate import Mutation, mutate
from fuzz_outcome import FAULTS, OUTCOMES, judged

SEEDS = range(8)
QUICK = ("lerobot-v2.1", "lerobot-v3.0", "rlds", "calvin", "qa-messages")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(tmp_path_factory.mktemp("fuzz"), Path("no run"))


@pytest.mark.parametrize("name", QUICK)
def test_a_damaged_file_is_read_the_same_or_refused_in_one_message(
    worker: Worker, name: str
) -> None:
    results = [worker.result(seed, name) for seed in SEEDS]
    assert [one for one in results if one.outcome in FAULTS] == []
    assert {one.outcome for one in results} <= set(OUTCOMES)
    assert len({one.mutation for one in results}) > len(SEEDS) // 2


def test_a_seed_does_the_same_again(tmp_path: Path) -> None:
    """Also on files that have just been written: nothing depends on times or on the order of a folder."""
    known = formats(Path("no run"))
    for seed in range(8):
        done = []
        for copy in ("one", "two"):
            root = tmp_path / copy / str(seed)
            root.parent.mkdir(exist_ok=True)
            known["rlds"].make(root)
            done.append((mutate(root, seed), sorted(p.name for p in root.iterdir())))
        assert done[0] == done[1]
    assert format_of(7, known) == format_of(7, known) in known


def test_every_kind_of_mutation_changes_the_files(tmp_path: Path) -> None:
    source = tmp_path / "sound"
    formats(Path("no run"))["lerobot-v2.0"].make(source)
    kinds = set()
    for seed in range(60):
        root = tmp_path / "work"
        shutil.copytree(source, root)
        mutation = mutate(root, seed)
        kinds.add(mutation.kind)
        path = root / mutation.file
        same = path.is_file() and path.read_bytes() == (source / mutation.file).read_bytes()
        assert not same, mutation
        shutil.rmtree(root)
    assert {"bit flipped", "file removed", "row doubled", "value of another type"} <= kinds
    assert pq.read_table(
        next(source.rglob("*.parquet"))
    ).num_rows  # the sound files are as they were


ROOT = Path("/data/set")
SOUND = Done(0, "", "", {"a": "1", "b": "2"})


@pytest.mark.parametrize(
    ("kind", "done", "outcome"),
    [
        ("row doubled", Done(0, "", "", {"a": "1", "b": "2"}), "same"),
        ("row doubled", Done(2, "", "error: /data/set/x: broken.\n  fix: a\n"), "refused"),
        ("row doubled", Done(2, "", "error: it is broken.\n"), "unclear"),
        ("row doubled", Done(1, "", "error: /data/set/x: broken.\n"), "unclear"),
        ("row doubled", Done(2, "", "Traceback\nerror: /data/set/x: broken.\n"), "unclear"),
        ("row doubled", Done(0, "left out: a", "", {"b": "2"}), "in part"),
        ("row doubled", Done(0, "left out: a", "", {"b": "3"}), "silent"),
        ("row doubled", Done(0, "", "", {"b": "2"}), "silent"),
        ("bit flipped", Done(0, "", "", {"a": "1", "b": "3"}), "different"),
    ],
)
def test_what_an_outcome_is(kind: str, done: Done, outcome: str) -> None:
    mutation = Mutation(kind, "data/chunk-000/episode_000000.parquet")
    assert judged("lerobot-v2.1", "convert", mutation, SOUND, done, ROOT)[0] == outcome


def test_a_number_that_a_checksum_protects_is_knowable() -> None:
    other = Done(0, "", "", {"a": "1", "b": "3"})
    for file, outcome in (
        ("x-train.tfrecord-00000-of-00001", "silent"),
        ("features.json", "different"),
    ):
        mutation = Mutation("bit flipped", file)
        assert judged("rlds", "convert", mutation, SOUND, other, ROOT)[0] == outcome
