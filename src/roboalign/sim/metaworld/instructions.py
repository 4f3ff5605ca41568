"""Give each Meta-World task an instruction, and nouns for the points of its observation.

Meta-World has no language. The instructions and nouns here were written for this project by looking
at each task's scene, at what `obs[4:7]` (and `obs[11:14]`) follow, and at where success is
measured. Left and right are the robot's.
"""

from roboalign.sim.base import Task

# task: (instruction, object, goal, second object if the task observes one)
_TEXTS: dict[str, tuple[str, ...]] = {
    "assembly-v3": (
        "Pick up the wrench by its handle and put its ring over the peg.",
        "wrench handle",
        "top of the peg",
    ),
    "basketball-v3": ("Pick up the basketball and drop it through the hoop.", "basketball", "hoop"),
    "bin-picking-v3": ("Move the cube from the left bin into the right bin.", "cube", "right bin"),
    "box-close-v3": ("Pick up the lid and put it on the box.", "lid", "top of the box"),
    "button-press-topdown-v3": (
        "Press the button down from above.",
        "button",
        "pressed position of the button",
    ),
    "button-press-topdown-wall-v3": (
        "Reach over the wall and press the button down from above.",
        "button",
        "pressed position of the button",
    ),
    "button-press-v3": (
        "Push the button on the front of the box.",
        "button",
        "pressed position of the button",
    ),
    "button-press-wall-v3": (
        "Go over the wall and push the button on the front of the box.",
        "button",
        "pressed position of the button",
    ),
    "coffee-button-v3": (
        "Press the button of the coffee machine.",
        "coffee machine button",
        "pressed position of the button",
    ),
    "coffee-pull-v3": ("Pull the mug away from the coffee machine to the target.", "mug", "target"),
    "coffee-push-v3": (
        "Push the mug under the coffee machine.",
        "mug",
        "place under the coffee machine",
    ),
    "dial-turn-v3": ("Turn the dial.", "dial pointer", "target beside the dial"),
    "disassemble-v3": (
        "Take the wrench by its handle and lift its ring off the peg.",
        "wrench handle",
        "place above the peg",
    ),
    "door-close-v3": (
        "Close the door by its handle.",
        "door handle",
        "closed position of the handle",
    ),
    "door-lock-v3": (
        "Lock the door by turning the lock down.",
        "lock handle",
        "locked position of the handle",
    ),
    "door-open-v3": ("Open the door by its handle.", "door handle", "open position of the handle"),
    "door-unlock-v3": (
        "Unlock the door by turning the lock to the right.",
        "lock handle",
        "unlocked position of the handle",
    ),
    "drawer-close-v3": ("Push the drawer shut.", "drawer handle", "closed position of the handle"),
    "drawer-open-v3": (
        "Pull the drawer open by its handle.",
        "drawer handle",
        "open position of the handle",
    ),
    "faucet-close-v3": (
        "Turn the faucet handle to the left.",
        "faucet handle",
        "left end of the handle's turn",
    ),
    "faucet-open-v3": (
        "Turn the faucet handle to the right.",
        "faucet handle",
        "right end of the handle's turn",
    ),
    "hammer-v3": (
        "Pick up the hammer and drive the nail into the block.",
        "hammer",
        "driven-in position of the nail",
        "nail",
    ),
    "hand-insert-v3": (
        "Pick up the cube and put it into the hole in the table.",
        "cube",
        "hole in the table",
    ),
    "handle-press-side-v3": (
        "Press down the handle that sticks out sideways.",
        "side handle",
        "lower end of the handle's travel",
    ),
    "handle-press-v3": (
        "Press down the handle in front of the box.",
        "handle",
        "lower end of the handle's travel",
    ),
    "handle-pull-side-v3": (
        "Pull up the handle that sticks out sideways.",
        "side handle",
        "upper end of the handle's travel",
    ),
    "handle-pull-v3": (
        "Pull up the handle in front of the box.",
        "handle",
        "upper end of the handle's travel",
    ),
    "lever-pull-v3": ("Pull the lever up.", "lever tip", "upper end of the lever's travel"),
    "peg-insert-side-v3": (
        "Pick up the peg and insert it into the hole in the side of the block.",
        "peg",
        "hole",
    ),
    "peg-unplug-side-v3": (
        "Pull the plug sideways out of its socket.",
        "plug",
        "place beside the socket",
    ),
    "pick-out-of-hole-v3": (
        "Lift the puck out of the hole and bring it to the target.",
        "puck",
        "target",
    ),
    "pick-place-v3": ("Pick up the puck and hold it at the target in the air.", "puck", "target"),
    "pick-place-wall-v3": (
        "Pick up the puck and carry it over the wall to the target.",
        "puck",
        "target behind the wall",
    ),
    "plate-slide-back-side-v3": (
        "Slide the plate out of the net to the right.",
        "plate",
        "target to the right of the net",
    ),
    "plate-slide-back-v3": (
        "Slide the plate out of the net towards yourself.",
        "plate",
        "target in front of the net",
    ),
    "plate-slide-side-v3": ("Slide the plate to the left into the net.", "plate", "net"),
    "plate-slide-v3": ("Slide the plate forward into the net.", "plate", "net"),
    "push-back-v3": ("Pull the cube back along the table to the target.", "cube", "target"),
    "push-v3": ("Push the puck along the table to the target.", "puck", "target"),
    "push-wall-v3": (
        "Push the puck around the wall to the target.",
        "puck",
        "target behind the wall",
    ),
    "reach-v3": ("Move the gripper to the target.", "puck", "target"),
    "reach-wall-v3": (
        "Move the gripper over the wall to the target.",
        "puck",
        "target behind the wall",
    ),
    "shelf-place-v3": ("Pick up the cube and put it on the shelf.", "cube", "shelf"),
    "soccer-v3": ("Push the soccer ball into the net.", "soccer ball", "soccer net"),
    "stick-pull-v3": (
        "Grasp the stick, hook it into the thermos handle and pull the thermos to the target.",
        "stick",
        "target",
        "thermos handle",
    ),
    "stick-push-v3": (
        "Grasp the stick and push the thermos to the target with it.",
        "stick",
        "target",
        "thermos",
    ),
    "sweep-into-v3": ("Sweep the cube into the hole in the table.", "cube", "hole in the table"),
    "sweep-v3": (
        "Sweep the cube to the right side of the table.",
        "cube",
        "right side of the table",
    ),
    "window-close-v3": (
        "Slide the window shut by its handle.",
        "window handle",
        "closed position of the handle",
    ),
    "window-open-v3": (
        "Slide the window open by its handle.",
        "window handle",
        "open position of the handle",
    ),
}


def _task(name: str) -> Task:
    instruction, first, goal, *second = _TEXTS[name]
    nouns = {"object": first, "goal": goal}
    if second:
        nouns["object2"] = second[0]
    return Task(name, instruction, nouns)


TASKS: dict[str, Task] = {name: _task(name) for name in _TEXTS}

# Meta-World's ML45: 45 training tasks and 5 held out.
HELD_OUT: tuple[str, ...] = (
    "bin-picking-v3",
    "box-close-v3",
    "door-lock-v3",
    "door-unlock-v3",
    "hand-insert-v3",
)
TRAIN: tuple[str, ...] = tuple(name for name in sorted(TASKS) if name not in HELD_OUT)
