"""Read CALVIN's checkout: commits, tasks, sentences and the initial poses.

Nothing of CALVIN is part of this project. Its tables are read from the user's files as literals or
YAML; only the simulator itself is imported (`library.py`).
"""

import ast
import functools
import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from roboalign.core.errors import RoboAlignError

CLONE = (
    "git clone https://github.com/mees/calvin && git clone https://github.com/mees/calvin_env "
    "calvin/calvin_env, then --set collect.calvin.checkout=calvin"
)
_AGENT = "calvin_models/calvin_agent/evaluation"
SENTENCES = "calvin_models/conf/annotations/new_playtable_validation.yaml"
ORACLE = "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml"
RULES = f"{_AGENT}/multistep_sequences.py"
POSES = f"{_AGENT}/utils.py"
SIMULATOR = "calvin_env/calvin_env/envs/play_table_env.py"
_NEEDED = (SENTENCES, ORACLE, RULES, POSES, SIMULATOR)
Rule = Mapping[str, Mapping[str, Any]]
"""{"condition": {thing: value or list of values}, "effect": {thing: value}}."""


@dataclass(frozen=True)
class InitialPoses:
    """Where robot and blocks begin a measured chain in scene D, meters and radians."""

    robot: tuple[float, ...]
    """15 numbers as the environment's `robot_obs`."""
    slider_left: tuple[float, ...]
    slider_right: tuple[float, ...]
    table: tuple[tuple[float, ...], ...]
    """The two places on the table."""


@dataclass(frozen=True)
class Checkout:
    """A checked folder of CALVIN. Its files are read when they are asked for."""

    root: Path

    @property
    def simulator(self) -> Path:
        """Return the folder of calvin_env."""
        return self.root / "calvin_env"

    def commits(self) -> dict[str, str]:
        """Return the commit of both repositories, with `+changes` where tracked files differ from
        it."""
        return {"calvin": _commit(self.root), "calvin_env": _commit(self.simulator)}

    def sentences(self) -> dict[str, str]:
        """Return task -> the sentence that a measured policy reads, the first of each."""
        table = self._yaml(SENTENCES)
        return {name: sentences[0] for name, sentences in table.items()}

    def oracle_tasks(self) -> dict[str, Any]:
        """Return task -> the oracle's function and thresholds."""
        tasks: dict[str, Any] = self._yaml(ORACLE)["tasks"]
        return tasks

    def rules(self) -> dict[str, list[Rule]]:
        """Return task -> the symbolic changes that it can be, in CALVIN's order of tasks."""
        rules: dict[str, list[Rule]] = self._literal(RULES, "tasks")
        return rules

    def categories(self) -> dict[str, int]:
        """Return task -> its category; the tasks of a chain have different ones."""
        categories: dict[str, int] = self._literal(RULES, "task_categories")
        return categories

    def initial_poses(self) -> InitialPoses:
        """Return the poses of measured chains. Raises RoboAlignError if the file has changed."""
        lists = {
            name: _number_lists(self._assigned(POSES, name))
            for name in ("robot_obs", "block_slider_left", "block_slider_right", "block_table")
        }
        lengths = [[len(row) for row in rows] for rows in lists.values()]
        if lengths != [[15], [3], [3], [3, 3]]:
            raise RoboAlignError(
                f"initial poses of other lengths than expected: {lengths}",
                where=str(self.root / POSES),
                fix="check out the main branch of mees/calvin",
            )
        (robot,), (left,), (right,), table = lists.values()
        return InitialPoses(robot, left, right, table)

    def sentences_hash(self) -> str:
        """Return the sha256 of the file of sentences."""
        return hashlib.sha256((self.root / SENTENCES).read_bytes()).hexdigest()

    def _yaml(self, path: str) -> Any:
        try:
            return yaml.safe_load((self.root / path).read_text())
        except yaml.YAMLError as error:
            raise RoboAlignError(f"not YAML ({error})", where=str(self.root / path)) from None

    def _literal(self, path: str, name: str) -> Any:
        try:
            return ast.literal_eval(self._assigned(path, name))
        except ValueError:
            raise RoboAlignError(
                f"{name} is no literal", where=str(self.root / path), fix=CLONE
            ) from None

    def _assigned(self, path: str, name: str) -> ast.expr:
        """Return the expression that a Python file assigns to a name, without running the file."""
        for node in ast.walk(ast.parse((self.root / path).read_text())):
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == name for target in node.targets
            ):
                return node.value
        raise RoboAlignError(
            f"nothing is assigned to {name}",
            where=str(self.root / path),
            fix="check out the main branch of mees/calvin",
        )


@functools.cache
def open_checkout(folder: str) -> Checkout:
    """Check the folder and return it.

    Raises RoboAlignError if none is named, a file is missing, or one of the two is no git work tree,
    which the simulator's constructor demands.
    """
    if not folder:
        raise RoboAlignError("no checkout of CALVIN is named", where="calvin.checkout", fix=CLONE)
    checkout = Checkout(Path(folder).expanduser().resolve())
    if missing := [path for path in _NEEDED if not (checkout.root / path).is_file()]:
        raise RoboAlignError(
            f"no checkout of CALVIN: {', '.join(missing)} missing",
            where=str(checkout.root),
            fix=CLONE,
        )
    checkout.commits()
    return checkout


def _commit(folder: Path) -> str:
    top = _git(folder, "rev-parse", "--show-toplevel")
    if Path(top).resolve() != folder.resolve():
        raise RoboAlignError(
            f"not a git work tree of its own (its files belong to {top})",
            where=str(folder),
            fix="clone it with git; an unpacked archive does not do",
        )
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules")
    return _git(folder, "rev-parse", "HEAD") + ("+changes" if changed else "")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise RoboAlignError(
            f"git cannot read it ({said.strip()})",
            where=str(folder),
            fix="clone it with git; an unpacked archive does not do",
        ) from None
    return done.stdout.strip()


def _number_lists(expression: ast.expr) -> tuple[tuple[float, ...], ...]:
    """Return every list of plain numbers in an expression, in order."""
    found: list[tuple[float, ...]] = []
    for node in ast.walk(expression):
        if isinstance(node, ast.List):
            try:
                values = ast.literal_eval(node)
            except ValueError:
                continue
            if all(isinstance(value, (int, float)) for value in values):
                found.append(tuple(float(value) for value in values))
    return tuple(found)
