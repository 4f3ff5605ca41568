"""Kill commands at random moments, give the same command again, and compare what is there at the end.

    python tests/kills.py --kills 100 [--seed 0] [--what NAME] [--run FOLDER] [--minutes M]

What is killed: `data convert`, `data mix`, the rollouts and the report of a run, `distill`, and a whole run.

SIGKILL goes to the command and all of its processes. A moment is a number of changes of the output folder, drawn by
the seed, and up to half a second more, so that kills fall into the work on a busy machine too. A folder is killed one
to five times before the command may end. Its weights, tables and records must then equal those of an unbroken one,
without times. `--run` is a finished run of the shrunken smoke recipe (fuzz_files.py), from which rollouts, report and
`distill` take what comes before them. Prints the counts and each difference; the exit status is 1 where there is one.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fuzz_files import RECIPE, SHRINK, TESTS, finished_run, questions

LIMIT = 900.0
"""Seconds of one start; past it the command hangs."""
POLL = 0.01
State = dict[str, str]

MODULE = (sys.executable, "-m", "roboalign")
CONVERT = (
    "import sys; from roboalign.episodes import rewrite; rewrite.FILE_BYTES = 20_000; "
    "from roboalign.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
"""`data convert` closes a file of 100 MB; a small data set is to have several."""
DISTILL = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r}); from kills import answer_right; answer_right(); "
    "from roboalign.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
FEW = (
    "parallel=1",
    "distill.rl_questions=8",
    "distill.questions=12",
    "distill.samples=2",
    "distill.max_new_tokens=8",
    "distill.rl={reward: answer, prompts_per_rollout: 4, prompts_per_update: 4, micro_batch_size: 4, "
    "samples: 2, updates: 3, save_every: 1, max_new_tokens: 8}",
)
RECORDS = 400
"""Question records of each of the three sources that `mix` mixes."""


def answer_right() -> None:
    """`distill` with small shards and, since the tiny model does not reason, one right answer to each question."""
    from roboalign.run.stages import distill

    ask = distill.ask_mllm

    def answered(mllm: Any, questions: Any, config: Any, number: int) -> list[dict[str, Any]]:
        records = ask(mllm, questions, config, number)
        for record, question in zip(records, questions):
            (turn,) = question.turns
            label = turn.question.rsplit('"', 2)[1]
            thought = "<think>The gripper is open now. That settles it.</think>"
            record["answers"][0] = f"{thought}<answer>{label} {turn.expected}</answer>"
        return records

    distill.ask_mllm, distill.SHARD = answered, 3


@dataclass(frozen=True)
class Target:
    """A command that is killed. `prepare` makes what it starts from; `command` is for an output folder."""

    prepare: Callable[[Path], None]
    command: Callable[[Path], list[str]]


def targets(place: Path, run: Path) -> dict[str, Target]:
    """What can be killed; its input is written to `place`."""

    def source(out: Path) -> None:
        if not (place / "robot").exists():
            from data_episodes import make_episode

            from roboalign.episodes.rewrite import rewrite
            from roboalign.episodes.robot_data import RobotData

            made = [make_episode("puck-push", seed, 12, 24) for seed in range(12)]
            rewrite(RobotData("made", "test", lambda: iter(made)), place / "robot")

    def qa(out: Path) -> None:
        if (place / "qa").exists():
            return
        names = ("llava", "messages", "pairs")
        sources = []
        for name in names:
            questions(name, RECORDS)(place / "qa" / name)
            mixture = yaml.safe_load((place / "qa" / name / "mixture.yaml").read_text())
            sources += [{**mixture["sources"][0], "name": name}]
        whole = {"name": "killed", "sources": sources, "shard_size": 60}
        (place / "qa" / "mixture.yaml").write_text(yaml.safe_dump(whole))

    def copied(*left_out: str) -> Callable[[Path], None]:
        """The finished run without these stages."""

        def prepare(out: Path) -> None:
            shutil.copytree(finished_run(run), out)
            for name in left_out:
                shutil.rmtree(out / name)

        return prepare

    def recipe(verb: str, out: Path, *settings: str, start: Sequence[str] = MODULE) -> list[str]:
        given = [part for setting in (*SHRINK, *settings) for part in ("--set", setting)]
        return [*start, verb, str(RECIPE), "--out", str(out), *given]

    mixture = str(place / "qa" / "mixture.yaml")
    robot = [sys.executable, "-c", CONVERT, "data", "convert", str(place / "robot")]
    mix = [*MODULE, "data", "mix", mixture, "--workers", "2"]
    distilled = [sys.executable, "-c", DISTILL]
    return {
        "convert": Target(source, lambda out: [*robot, "--out", str(out)]),
        "mix": Target(qa, lambda out: [*mix, "--out", str(out)]),
        "rollouts": Target(
            copied("seed-0/eval", "report"),
            lambda out: [*recipe("run", out), "--until", "eval/rollouts"],
        ),
        "report": Target(copied("report"), lambda out: recipe("report", out)),
        "distill": Target(
            copied("seed-0", "report"),
            lambda out: recipe("distill", out, *FEW, start=distilled),
        ),
        "run": Target(lambda out: None, lambda out: recipe("run", out)),
    }


# What is there at the end ------------------------------------------------------------------------


def without_times(value: Any) -> Any:
    """A record without what a clock said."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not is_time(k)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def is_time(key: str) -> bool:
    return any(word in key for word in ("second", "time", "_per_s", "speed", "memory"))


def state(folder: Path) -> State:
    """Weights and tables by their bytes, records by their values; checkpoints and what was moved aside are left out."""
    found: State = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        aside = any(part.startswith(".") or ".outdated-" in part for part in parts)
        if aside or "checkpoints" in parts or not path.is_file():
            continue
        if path.suffix == ".jsonl":
            rows = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
            data = "\n".join(sorted(json.dumps(row, sort_keys=True) for row in rows)).encode()
        elif path.suffix in (".safetensors", ".parquet"):
            data = path.read_bytes()
        else:
            continue
        found["/".join(parts)] = hashlib.sha256(data).hexdigest()
    return found


def changes(folder: Path) -> set[tuple[str, int]]:
    """Names and sizes below a folder and in the hidden one beside it in which `data mix` works."""
    found = set()
    building = folder.parent / f".{folder.name}.building"
    for base, _, files in (*os.walk(folder), *os.walk(building)):
        for name in files:
            try:
                found.add((f"{base}/{name}", (Path(base) / name).stat().st_size))
            except FileNotFoundError:
                continue
    return found


# Killing -----------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a start ended: by the kill, or by itself, after so many changes."""

    killed: bool
    changes: int
    output: str = ""


def start(command: list[str], out: Path, after: int | None, delay: float = 0.0) -> Ended:
    """Start a command, and kill it `delay` seconds after the `after`-th change of `out`; None: let it end."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        begun, seen, count = time.monotonic(), changes(out), 0
        try:
            while process.poll() is None:
                assert time.monotonic() - begun < LIMIT, f"not done after {LIMIT:g} s: {command}"
                if (now := changes(out)) != seen:
                    seen, count = now, count + 1
                if after is not None and count >= after:
                    time.sleep(delay)
                    break
                time.sleep(POLL)
            killed = process.poll() is None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        output = said.read()
    if not killed and process.returncode:
        raise AssertionError(f"exit status {process.returncode}: {output[-2000:]}")
    return Ended(killed, count, output)


def unbroken(target: Target, out: Path) -> tuple[State, int]:
    """What the command makes when nobody disturbs it, and how often its folder changes."""
    target.prepare(out)
    ended = start(target.command(out), out, None)
    return state(out), ended.changes


def killed_and_ended(target: Target, out: Path, whole: int, rng: random.Random) -> int:
    """Kill a command one to five times, then let it end; the number of kills."""
    target.prepare(out)
    kills = 0
    for _ in range(rng.randint(1, 5)):
        after = rng.randint(1, max(1, whole // 2))
        if not start(target.command(out), out, after, rng.random() / 2).killed:
            break
        kills += 1
    start(target.command(out), out, None)
    return kills


def differences(one: State, two: State) -> list[str]:
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    names = list(targets(Path(), Path()))
    parser.add_argument("--what", action="append", choices=names)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after this")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    wrong: list[str] = []
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        place = Path(folder)
        run = (options.run or place / "finished").resolve()
        chosen = {n: t for n, t in targets(place, run).items() if n in (options.what or names)}
        sound = {name: unbroken(one, place / f"{name}-whole") for name, one in chosen.items()}
        cycle = 0
        while sum(counts.values()) < options.kills and time.monotonic() < until:
            name = list(chosen)[cycle % len(chosen)]
            rng, out = random.Random(f"{options.seed} {cycle}"), place / f"{name}-{cycle}"
            try:
                kills = killed_and_ended(chosen[name], out, sound[name][1], rng)
                counts[name] = counts.get(name, 0) + kills
                if differing := differences(sound[name][0], state(out)):
                    wrong.append(f"{name}, cycle {cycle}: {', '.join(differing)}")
            except AssertionError as error:
                wrong.append(f"{name}, cycle {cycle}: {error}")
            cycle += 1
            print(f"{sum(counts.values())} kills {counts}, {len(wrong)} wrong", flush=True)
            shutil.rmtree(out, ignore_errors=True)
    print("\n".join(wrong) or f"{counts}: every final state is that of the unbroken command")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
