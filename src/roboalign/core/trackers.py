"""Record training metrics: a line each in metrics.jsonl, and the same numbers in the trackers.

The recipe names the trackers. A tracker's run belongs to the folder of one metrics.jsonl.
`trackers.json` next to it holds the run's id and the last step that was sent, so that a resumed
training continues the same run and sends nothing twice. Steps that a tracker lacks, because it was
added later or failed before, are sent from metrics.jsonl. A tracker that fails never stops a
training.
"""

import importlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import append_jsonl, read_json, read_jsonl, write_json
from roboalign.core.progress import say

TrackerName = Literal["tensorboard", "wandb", "trackio"]
_STATE = "trackers.json"


class Tracker(Protocol):
    """One run of a tracker."""

    def __init__(self, folder: Path, project: str, name: str, id: str) -> None:
        """Open or continue the run `id` of `project`; `folder` contains metrics.jsonl."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send the numbers of a step."""

    def finish(self) -> None:
        """Send what is buffered, and end this session of the run."""


class TensorBoard:
    """Event files in `tensorboard/` next to metrics.jsonl: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, project: str, name: str, id: str) -> None:
        from tensorboard.summary import Writer

        self.writer = Writer(str(folder / "tensorboard"))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Write one scalar for each number, at once visible to a viewer."""
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb; WANDB_MODE, WANDB_PROJECT and its other environment variables apply."""

    def __init__(self, folder: Path, project: str, name: str, id: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        os.environ.setdefault("WANDB_SILENT", "true")
        project = os.environ.get("WANDB_PROJECT", project)
        self.run = wandb.init(
            project=project, name=name, id=id, resume="allow", dir=str(folder), reinit="create_new"
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send the numbers of a step in one call."""
        self.run.log(numbers, step=step)

    def finish(self) -> None:
        """Wait until it is uploaded."""
        self.run.finish()


class Trackio:
    """A run of trackio; its environment variables apply (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

    def __init__(self, folder: Path, project: str, name: str, id: str) -> None:
        trackio: Any = importlib.import_module("trackio")
        # Trackio identifies a run by its name alone; the id separates two runs of one recipe.
        own = f"{name}-{id}".replace("/", "-")
        self.run = trackio.init(project=project, name=own, resume="allow")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send the numbers of a step in one call."""
        self.run.log(numbers, step=step)

    def finish(self) -> None:
        """Wait until it is written."""
        self.run.finish()


_KINDS: dict[TrackerName, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise RoboAlignError if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise RoboAlignError(
                f"{name} is not installed",
                where="trackers",
                fix=f"install it with `pip install 'roboalign[{name}]'`, or leave it out",
            )


class Session:
    """The trackers of the metrics.jsonl being written; a record of another file opens its own."""

    def __init__(self, names: Sequence[TrackerName], project: str, name: str) -> None:
        self.names, self.project, self.name = names, project, name
        self.folder: Path | None = None
        self.state: dict[str, Any] = {}
        self.open: dict[TrackerName, Tracker] = {}
        self.failed: set[TrackerName] = set()

    def record(self, metrics: Path) -> None:
        """Send the records of `metrics` that the trackers do not have yet."""
        if not self.names:
            return
        if metrics.parent != self.folder:
            self._begin(metrics.parent)
        for name in self.names:
            if name not in self.failed:
                self._guarded(name, self._send, name, metrics)
        write_json(metrics.parent / _STATE, self.state)

    def finish(self) -> None:
        """End the open runs."""
        for name, tracker in self.open.items():
            self._guarded(name, tracker.finish)
        self.open = {}

    def _begin(self, folder: Path) -> None:
        self.finish()
        kept = folder / _STATE
        fresh = {"id": uuid.uuid4().hex[:8], "sent": {}}
        self.folder, self.state = folder, read_json(kept) if kept.is_file() else fresh

    def _send(self, name: TrackerName, metrics: Path) -> None:
        sent = self.state["sent"].get(name, -1)
        rows = [row for row in read_jsonl(metrics) if row["step"] > sent]
        if not rows:
            return
        if name not in self.open:
            inner = metrics.parent.name
            run = self.name if self.name.endswith(inner) else f"{self.name}/{inner}"
            self.open[name] = _KINDS[name](metrics.parent, self.project, run, self.state["id"])
        for row in rows:
            self.open[name].log(row["step"], numbers_of(row))
            self.state["sent"][name] = row["step"]

    def _guarded(self, name: TrackerName, work: Any, *arguments: Any) -> None:
        """Run `work`; report its failure once, then skip the tracker in this process."""
        if name in self.failed:
            return
        try:
            work(*arguments)
        except Exception as error:  # whatever a tracker or its network raises
            self.failed.add(name)
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            told = f"{name} failed ({said}); training continues without it"
            say(f"{told}, metrics.jsonl has all numbers", self.name)


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a record without its step, which trackers take separately."""
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


_session = Session((), "", "")


@contextmanager
def tracking(names: Sequence[TrackerName], project: str, name: str) -> Iterator[None]:
    """Make `record_metrics` of this process also send to these trackers, inside the context."""
    global _session
    before, _session = _session, Session(names, project, name)
    try:
        yield
    finally:
        _session.finish()
        _session = before


def record_metrics(path: Path, record: dict[str, Any]) -> None:
    """Append a record, which has a `step`, to `path` and send it to the trackers.

    `path` is that of a metrics.jsonl.
    """
    append_jsonl(path, record)
    _session.record(path)
