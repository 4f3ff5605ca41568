"""Instructions of all tasks."""

from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3
from metaworld.policies import ENV_POLICY_MAP

from roboalign.sim.metaworld.instructions import HELD_OUT, TASKS, TRAIN


def test_every_task_has_one_instruction_of_its_own():
    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS) == 50
    for name, task in TASKS.items():
        assert task.name == name
        assert task.instruction.endswith(".") and task.instruction[0].isupper()
        assert {"object", "goal"} <= set(task.nouns) <= {"object", "object2", "goal"}
        assert all(task.nouns.values())


def test_second_objects_are_those_that_metaworld_observes():
    assert {name for name, task in TASKS.items() if "object2" in task.nouns} == {
        "hammer-v3",
        "stick-pull-v3",
        "stick-push-v3",
    }


def test_the_split_is_ml45():
    assert set(TRAIN) == set(ML45_V3["train"])
    assert set(HELD_OUT) == set(ML45_V3["test"])
