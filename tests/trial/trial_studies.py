"""Studies for tests."""

from pathlib import Path
from typing import Any

from roboalign.trial.desk import Desk
from roboalign.trial.pictures import read_pictures
from roboalign.trial.plan import LockedPlan, PlanKey, draw_plan, lock_plan
from roboalign.trial.study import Study

TASK = {"instruction": "pick up the cube", "success": "the cube is off the table"}


def study(**changed: Any) -> Study:
    """Two arms, two tasks, four trials."""
    values: dict[str, Any] = {
        "name": "toy",
        "arms": {"base": "ws://127.0.0.1:9001", "aligned": "ws://127.0.0.1:9002"},
        "tasks": {
            "lift": TASK | {"conditions": ["left", "right"], "stages": ["reached", "grasped"]},
            "push": TASK | {"instruction": "push the cube"},
        },
        "trials": 4,
        "seed": 1,
    }
    return Study(**(values | changed))


def locked(folder: Path, **changed: Any) -> tuple[Path, LockedPlan, PlanKey]:
    """A locked plan's path, plan and key."""
    drawn = study(**changed)
    plan, key = draw_plan(drawn, read_pictures(drawn, folder))
    path = folder / "toy.plan.json"
    lock_plan(path, plan, key)
    return path, plan, key


class AskedDesk(Desk):
    """A robot asks once as soon as a trial is started."""

    def start(self, trial: int, attempt: int, operator: str) -> None:
        before = self.running()
        super().start(trial, attempt, operator)
        if self.running() is not before:
            self.count(self.running(), "requests")
