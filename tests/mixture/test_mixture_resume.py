"""A mixture that was killed is gone on with: the same bytes, and what was written is not written again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mixing_sources import settings, shard_bytes, write_qa

from roboalign.mixture import builder as building
from roboalign.mixture import draw as choose
from roboalign.mixture import write
from roboalign.mixture.builder import build
from roboalign.mixture.config import MixtureConfig

# Slowed down in every process, so that a kill always finds shards that are not written yet.
SCRIPT = """
import sys, time
from roboalign.mixture import write
from roboalign.mixture.builder import build
from roboalign.mixture.config import MixtureConfig
fast = write.group
def slow(*arguments):
    time.sleep(0.05)
    return fast(*arguments)
write.group = slow
if __name__ == "__main__":
    build(MixtureConfig.model_validate_json(open(sys.argv[1]).read()), sys.argv[2], workers=2)
"""


@pytest.fixture
def config(tmp_path: Path, three: list[dict]) -> MixtureConfig:
    return settings(
        *three,
        tokenizer={"fit": True, "horizon": 6, "scale": 4.0, "vocab_size": 128},
        shard_size=20,
        rl={"source": "acts", "count": 5, "at_most": 0.1},
        heldout={"share": 0.15},
    )


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (building, "scan_part", 2),
        (building, "make_tokens", 1),
        (building, "examine_part", 4),
        (choose, "place_drawn", 1),
        (choose, "release_seen", 1),
        (write, "write_shard", 3),
        (building, "describe_mixture", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rsplit(".", 1)[-1],
)
def test_stopped_anywhere_the_same_call_ends_with_the_same_bytes(
    config: MixtureConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module,
    name: str,
    call: int,
) -> None:
    build(config, tmp_path / "whole")
    work, calls = getattr(module, name), []

    def stops(*arguments, **more):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return work(*arguments, **more)

    monkeypatch.setattr(module, name, stops)
    with pytest.raises(KeyboardInterrupt):
        build(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    build(config, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    for name in ("manifest.json", "dropped.jsonl", "rl-ids.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_settings_begin_anew(
    config: MixtureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "describe_mixture", stops)
        with pytest.raises(KeyboardInterrupt):
            build(config.model_copy(update={"seed": 1}), tmp_path / "out")
    build(config, tmp_path / "out")
    build(config, tmp_path / "fresh")
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "fresh")


def test_after_kill_9_only_the_missing_shards_are_written(tmp_path: Path) -> None:
    source = {
        "name": "qa",
        "qa": str(write_qa(tmp_path / "qa", 600, suffix=".jsonl", pictures=10)),
        "count": 600,
    }
    config = settings(source, shard_size=6)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        str(tmp_path / "script.py"),
        str(tmp_path / "config.json"),
        str(tmp_path / "out"),
    ]
    out = tmp_path / ".out.building/out"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    give_up = time.monotonic() + 120
    while (
        len(list(out.glob("train-*"))) < 5 and time.monotonic() < give_up and process.poll() is None
    ):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the workers end with it
    written = {path.name: path.stat().st_mtime_ns for path in out.glob("train-*")}
    assert 5 <= len(written) < 100 and not (tmp_path / "out").exists()
    told = {path.stem for path in (tmp_path / ".out.building/written").glob("*.json")}
    build(config, tmp_path / "out")  # by one process, where two began it
    for name in told:
        assert (tmp_path / "out" / name).stat().st_mtime_ns == written[name]
    build(config, tmp_path / "whole")
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole") and len(told) >= 4
