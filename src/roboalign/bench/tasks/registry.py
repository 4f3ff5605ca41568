"""Find a task and its protocol by name."""

from roboalign.bench.presets import Protocol
from roboalign.bench.tasks.base import BenchTask
from roboalign.bench.tasks.mmstar import MMSTAR
from roboalign.bench.tasks.options import BLINK_DEPTH, CV_BENCH, EMBSPATIAL, ERQA, SAT
from roboalign.bench.tasks.robot_r1 import ROBOT_R1
from roboalign.bench.tasks.spatial import REFSPATIAL_BENCH, ROBOSPATIAL
from roboalign.bench.tasks.where2place import WHERE2PLACE
from roboalign.core.errors import RoboAlignError

BENCH_TASKS: dict[str, BenchTask] = {
    task.name: task
    for task in (
        MMSTAR,
        BLINK_DEPTH,
        ROBOSPATIAL,
        WHERE2PLACE,
        ERQA,
        EMBSPATIAL,
        CV_BENCH,
        SAT,
        REFSPATIAL_BENCH,
        ROBOT_R1,
    )
}


def find_bench(name: str) -> BenchTask:
    """Return the task. Raises RoboAlignError on another name."""
    if name not in BENCH_TASKS:
        raise RoboAlignError(
            f"there is no task {name!r}. Available: {', '.join(BENCH_TASKS)}", where="--tasks"
        )
    return BENCH_TASKS[name]


def find_protocol(task: BenchTask, preset: str) -> Protocol:
    """Return the protocol of that name. Raises RoboAlignError if the task has none."""
    found = {str(name): protocol for name, protocol in task.presets.items()}.get(preset)
    if found is None:
        raise RoboAlignError(
            f"{task.title} has no preset {preset!r}; it has {', '.join(task.presets)}",
            where="--preset",
            fix="choose one of them, or measure this task in a command of its own",
        )
    return found
