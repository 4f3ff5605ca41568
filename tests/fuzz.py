"""Damage files of every supported format in many places, and run the public command on each.

    python tests/fuzz.py --seeds 2000 [--first 0] [--format NAME] [--workers 2] [--run FOLDER]

A seed names a format, a file, a mutation and a command; the same seed does the same again. `--run` is a finished run
of the shrunken smoke recipe to start from; without it one is made (a minute). An outcome is one of:

    same        the values that came out are those of the sound files
    refused     exit status 2 and one message that names a file of the input
    in part     some of it was left out and that was said; the rest is the same
    different   other values, where the format does not let one know (fuzz_outcome.py says what it lets one know)
    traceback, crash, hang, unclear, silent: faults. `unclear` is a message without the place, `silent` are other
                values, or fewer, where the format does let one know.

Prints each fault with the line that repeats it, then a table; the exit status is 1 where there is a fault. With
`--log FILE` every result is appended there, and seeds that it has are not run again: the same command continues.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz_files import Format, formats
from fuzz_mutate import Mutation, mutate
from fuzz_outcome import FAULTS, OUTCOMES, judged

LIMIT = 90.0
"""Seconds of one command where a core is free for it; past it is a hang."""
MEMORY = 12 << 30
"""Bytes of address space of a worker: a length field that is believed becomes a MemoryError, not a dead machine."""


@dataclass(frozen=True)
class Result:
    """How one seed ended."""

    seed: int
    format: str
    command: str
    mutation: str
    outcome: str
    detail: str = ""


def format_of(seed: int, known: dict[str, Format]) -> str:
    """The format of a seed where none is asked for."""
    shares = [one.share for one in known.values()]
    return random.Random(f"format {seed}").choices(list(known), shares)[0]


def command_of(seed: int, name: str, known: dict[str, Format]) -> str:
    return random.Random(f"command {seed}").choice(known[name].commands)


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


class Worker:
    """What a child process does: one seed after another, in a folder of its own."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.known = folder, formats(run)
        self.baselines: dict[tuple[str, str], Any] = {}

    def sound(self, name: str) -> Path:
        """The sound files of a format, written once."""
        root = self.folder / "sound" / name / "set"
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            self.known[name].make(root)
        return root

    def place(self, name: str) -> tuple[Path, Path]:
        """A new copy of the sound files, and an empty folder for what the command writes."""
        source, work = self.sound(name), self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "out").mkdir()
        shutil.copytree(source, work / "set", symlinks=True)
        mixture = work / "set" / "mixture.yaml"
        if mixture.exists():
            mixture.write_text(mixture.read_text().replace(str(source), str(work / "set")))
        return work / "set", work / "out"

    def baseline(self, name: str, command: str) -> Any:
        if (name, command) not in self.baselines:
            from fuzz_commands import run

            root, out = self.place(name)
            mixture = root / "mixture.yaml"
            if mixture.exists():  # every record, however few of them a seed draws
                mixture.write_text(mixture.read_text().replace("count: 5", "count: 8"))
            done = run(root, out, command)
            assert done.status == 0, (name, command, done.output, done.error)
            self.baselines[name, command] = done
        return self.baselines[name, command]

    def result(self, seed: int, name: str) -> Result:
        from fuzz_commands import run

        command = command_of(seed, name, self.known)
        sound = self.baseline(name, command)
        root, out = self.place(name)
        mutation: Mutation = mutate(root, seed)
        damaged = content(root / mutation.file)
        try:
            done = run(root, out, command)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            return Result(seed, name, command, str(mutation), "traceback", said[:400])
        if mutation.file in done.digest and content(root / mutation.file) == damaged:
            # The command did not write it: it is input, and shows in what was made of it.
            done.digest[mutation.file] = sound.digest[mutation.file]
        outcome, detail = judged(name, command, mutation, sound, done, root)
        return Result(seed, name, command, str(mutation), outcome, detail[:600])


def serve(line: Connection, folder: Path, run: Path) -> None:
    """Answer seeds until the other end is closed. A session of its own, so that a hang is ended with its children."""
    import resource

    from roboalign.core.processes import die_with_parent

    os.setsid()
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout = sys.stderr = (folder / "printed").open("w")
    worker = Worker(folder, run)
    while True:
        try:
            seed, name = line.recv()
        except EOFError:
            return
        try:
            line.send(worker.result(seed, name))
        except Exception as error:  # of this program: said, so that it is no crash of a command
            said = "".join(traceback.format_exception(error))[-600:]
            line.send(Result(seed, name, "", "", "crash", f"the fuzzer itself: {said}"))


class Child:
    """The parent's end of a worker, started again after a hang or a crash."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder, self.run = folder, run
        self.folder.mkdir(parents=True)
        self.asked: tuple[int, str] | None = None
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.folder, self.run))
        self.process.start()
        theirs.close()
        self.fresh = True

    def ask(self, seed: int, name: str) -> None:
        self.asked, self.since = (seed, name), time.monotonic()
        self.line.send((seed, name))

    def answer(self) -> Result | None:
        """The result, where there is one by now."""
        assert self.asked
        seed, name = self.asked
        # A fresh worker imports, and works out the sound values.
        late = LIMIT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        late *= 3 if self.fresh else 1
        if self.line.poll():
            try:
                result: Result = self.line.recv()
                self.fresh = False
            except EOFError:
                self.process.join()
                result = Result(seed, name, "", "", "crash", f"exit status {self.process.exitcode}")
                self.end()
                self.start()
        elif time.monotonic() - self.since > late:
            result = Result(seed, name, "", "", "hang", f"not done after {late:g} s")
            self.end()
            self.start()
        else:
            return None
        self.asked = None
        return result

    def end(self) -> None:
        if self.process.is_alive():
            try:
                os.killpg(self.process.pid or 0, signal.SIGKILL)
            except ProcessLookupError:  # before it has a session of its own
                self.process.kill()
        self.process.join()
        self.line.close()


def fuzz(
    seeds: list[int],
    folder: Path,
    run: Path,
    *,
    format: str | None = None,
    workers: int = 1,
    minutes: float = float("inf"),
) -> Iterator[Result]:
    """The result of every seed, in the order in which they end; none is begun after so many minutes."""
    until = time.monotonic() + 60 * minutes
    known, waiting = formats(run), seeds[::-1]
    children = [Child(folder / f"worker-{n}", run) for n in range(workers)]
    try:
        while waiting or any(child.asked for child in children):
            for child in children:
                if time.monotonic() > until:
                    waiting.clear()
                if not child.asked and waiting:
                    seed = waiting.pop()
                    child.ask(seed, format or format_of(seed, known))
            wait([child.line for child in children if child.asked], timeout=1.0)
            for child in children:
                if child.asked and (result := child.answer()):
                    yield result
    finally:
        for child in children:
            child.end()


def repeat(result: Result) -> str:
    return f"python tests/fuzz.py --format {result.format} --first {result.seed} --seeds 1"


def table(results: list[Result]) -> str:
    """Formats by outcomes."""
    counts = Counter((result.format, result.outcome) for result in results)
    names = sorted({result.format for result in results})
    there = [one for one in OUTCOMES if any(counts[name, one] for name in names)]
    rows = [["format", "mutations", *there]]
    for name in names:
        whole = sum(counts[name, one] for one in there)
        rows.append([name, f"{whole:,}", *(f"{counts[name, one]:,}" for one in there)])
    sums = (sum(counts[name, one] for name in names) for one in there)
    rows.append(["all", f"{len(results):,}", *(f"{one:,}" for one in sums)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def logged(path: Path | None, seeds: range, format: str | None) -> list[Result]:
    """Results of these seeds that an earlier call wrote."""
    if path is None or not path.exists():
        return []
    found = [Result(**json.loads(line)) for line in path.read_text().splitlines()]
    return [one for one in found if one.seed in seeds and format in (None, one.format)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, required=True)
    parser.add_argument("--format", choices=list(formats(Path())))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after this")
    parser.add_argument("--log", type=Path, help="append every result here")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    results = logged(options.log, seeds, options.format)
    left = sorted(set(seeds) - {one.seed for one in results})
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        run = options.run or Path(place) / "run"
        found = fuzz(
            left,
            Path(place),
            run.resolve(),
            format=options.format,
            workers=options.workers,
            minutes=options.minutes,
        )
        for done, result in enumerate(found, start=1):
            results.append(result)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(vars(result)) + "\n")
            if result.outcome in FAULTS or options.seeds == 1:
                print(f"{result.outcome}: {result.command}, {result.mutation}: {result.detail}")
                print(f"    {repeat(result)}", flush=True)
            if done % 50 == 0:
                minutes = (time.monotonic() - begun) / done * (len(left) - done) / 60
                faults = sum(result.outcome in FAULTS for result in results)
                said = (
                    f"{len(results):,} of {len(seeds):,}, {faults} faults, {minutes:.0f} min left"
                )
                print(said, file=sys.stderr, flush=True)
    print(table(results))
    return int(any(result.outcome in FAULTS for result in results))


if __name__ == "__main__":
    sys.exit(main())
