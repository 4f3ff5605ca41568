"""Define the arms that a run compares, one row per arm. The graph, the report and the recipe read
this table.

To add an arm, add its row to `ARMS`, and put the function of the stage that makes its backbone into
`run/stages/`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from roboalign.conversations.prompts import Mode

_STAGES = "roboalign.run.stages"
MAIN = "roboalign"
"""The arm that the others are controls of."""


@dataclass(frozen=True)
class Backbone:
    """A stage that makes what arms share: a model, or a separate mixture that a model is trained
    on."""

    stage: str
    """Its name, below the training seed's folder unless it is `shared`."""
    function: str
    """`module:function` in `run/stages/`, imported when the stages are planned."""
    needs: "tuple[Backbone, ...]" = ()
    settings: tuple[str, ...] = ()
    """The sections of the recipe that change its result."""
    shared: bool = False
    """Whether all training seeds use the same one."""
    together: bool = True
    """Whether all processes of a team run it."""
    curve: str = ""
    """The axes of the report on which its training log is drawn: `sft`, `rl`, or its own name; "":
    no log."""
    like: str = ""
    """The training that `roboalign plan` estimates it as: `sft`, `imitation` (of what RL is asked),
    `rl`; "": none."""

    def work(self) -> Callable[[Any], dict[str, Any]]:
        """Return the function that runs the stage."""
        module, name = self.function.split(":")
        work: Callable[[Any], dict[str, Any]] = getattr(import_module(f"{_STAGES}.{module}"), name)
        return work

    def comes_from(self, other: "Backbone") -> bool:
        """Return whether `other` is this one, or one that it starts from."""
        return self is other or any(need.comes_from(other) for need in self.needs)


MIX = Backbone("mix", "mix:mix", shared=True)
BASE = Backbone("base", "base:base", (MIX,), shared=True)
SFT = Backbone("sft", "align:sft", (BASE,), ("sft",), curve="sft", like="sft")
RL = Backbone("rl", "align:rl", (SFT,), ("rl",), curve="rl", like="rl")
EXTRA_SFT = Backbone(
    "extra-sft", "align:extra_sft", (SFT,), ("sft", "rl"), curve="extra-sft", like="imitation"
)
VISITED = Backbone(
    "visited", "visited:visited", (SFT,), ("visited", "token_policy"), together=False
)
RL_VISITED = Backbone(
    "rl-visited", "visited:rl_visited", (VISITED,), ("rl",), curve="rl", like="rl"
)
SFT_VISITED = Backbone(
    "sft-visited",
    "visited:sft_visited",
    (VISITED,),
    ("sft", "rl"),
    curve="sft-visited",
    like="imitation",
)


def _own_mixture(stage: str, function: str) -> Backbone:
    return Backbone(
        stage,
        f"baselines:{function}",
        (MIX,),
        ("mix", "baselines"),
        shared=True,
        together=False,
    )


def _own_sft(stage: str, function: str, mixture: Backbone) -> Backbone:
    """Return SFT from the base on a mixture made for this arm."""
    work = f"baselines:{function}"
    return Backbone(stage, work, (BASE, mixture), ("sft",), curve=stage, like="sft")


def _own_rl(stage: str, function: str) -> Backbone:
    return Backbone(stage, f"baselines:{function}", (SFT,), ("rl",), curve="rl", like="rl")


@dataclass(frozen=True)
class Arm:
    """One backbone that becomes a policy, by a head or by its own action tokens, and is measured."""

    name: str
    title: str
    """Its name in the report."""
    description: str
    """One sentence: what this arm was trained on."""
    backbone: Backbone
    compared_with: tuple[str, ...] = ()
    """Arms that this one is compared with in pairs, as the "after" side."""
    claim: str = ""
    """What MAIN's higher success than this arm's would show, as a clause after "that"; "" if that
    pair is not compared."""
    question: str = ""
    """The type of question that its RL asks in place of the action; SFT must have trained on this
    type."""
    simulated: bool = False
    """Whether its data come from demonstrations in the simulator, so that a given mixture is not
    enough."""
    uses_rl_subset: bool = False
    """Whether it needs the mixture's RL subset."""
    blind: bool = False
    """Whether its policy sees a gray image; the arm answers no questions of its own."""
    tokens: Mode | None = None
    """Its policy is the MLLM's own action tokens, written directly or after a reasoning, and not a
    head's; the arm answers no questions of its own."""
    online: str = ""
    """The arm whose policy it continues to train in the simulator: its head, or the MLLM if its
    tokens act; "": trained on demonstrations alone. The arm answers no questions of its own."""


def _token_rows(backbone: str, title: str, made_by: Backbone, before: str) -> Iterator[Arm]:
    """Yield the token policies of one arm's backbone; each mode is compared with `before`'s."""
    modes: tuple[tuple[Mode, str], ...] = (("direct", "at once"), ("think", "after a reasoning"))
    for mode, when in modes:
        earlier = f"{before}-tokens-{mode}" if before else ""
        other = f"{backbone}-tokens-direct" if mode == "think" else ""
        yield Arm(
            f"{backbone}-tokens-{mode}",
            f"{title}, its tokens, {mode}",
            f"{title}'s backbone without a head: the robot does the action tokens that it writes {when}",
            made_by,
            compared_with=tuple(name for name in (earlier, other) if name),
            simulated=True,
            uses_rl_subset=made_by.comes_from(RL) or made_by is EXTRA_SFT,
            tokens=mode,
        )


def _online_row(start: str, title: str, made_by: Backbone, *, against: str = "") -> Arm:
    """Return the arm of a head after online RL; the arm that it starts from is its control."""
    return Arm(
        f"{start}-online",
        f"{title}, head after online RL",
        f"{title}'s backbone and head, then RL of the head in the simulator, rewarded by success",
        made_by,
        compared_with=tuple(name for name in (start, against) if name),
        uses_rl_subset=made_by.comes_from(RL) or made_by is EXTRA_SFT,
        online=start,
    )


def _online_token_rows(backbone: str, title: str, made_by: Backbone, before: str) -> Iterator[Arm]:
    """Yield the token policies of one arm's backbone after online RL."""
    modes: tuple[Mode, ...] = ("direct", "think")
    for mode in modes:
        start = f"{backbone}-tokens-{mode}"
        against = f"{before}-tokens-{mode}-online" if before else ""
        yield Arm(
            f"{start}-online",
            f"{title}, its tokens, {mode}, after online RL",
            f"{title}'s backbone as a token policy, then GRPO on its tokens in the simulator, rewarded "
            "by success",
            made_by,
            compared_with=tuple(name for name in (start, against) if name),
            simulated=True,
            uses_rl_subset=made_by.comes_from(RL) or made_by is EXTRA_SFT,
            tokens=mode,
            online=start,
        )


def _rows() -> Iterator[Arm]:
    """Yield the rows of the table, in the paper's order."""
    yield Arm(
        "base",
        "Base",
        "the pretrained MLLM, action tokens added but never trained",
        BASE,
        compared_with=("random",),
        claim="alignment (SFT and RL together) beats the base model",
    )
    yield Arm(
        "language-sft",
        "Language-only SFT",
        "the base after SFT on as many samples, none of them an action",
        _own_sft("language-sft", "language_sft", _own_mixture("mix-language", "language_mix")),
        compared_with=("base",),
        claim="actions in SFT, and RL on them, beat SFT on language alone",
        simulated=True,
    )
    yield Arm(
        "action-sft",
        "Action-only SFT",
        "the base after SFT on as many samples, all of them actions",
        _own_sft("action-sft", "action_sft", _own_mixture("mix-action", "action_mix")),
        compared_with=("base",),
        claim="language in SFT, and RL after it, beat SFT on actions alone",
        simulated=True,
    )
    yield Arm(
        "sft",
        "SFT",
        "the base after SFT on question-answering, reasoning and action samples",
        SFT,
        compared_with=("base",),
    )
    yield Arm(
        "ecot",
        "SFT + ECoT",
        "SFT, then as many further updates on the RL subset as GRPO made, imitating a reasoning "
        "from the simulator's state and the recorded action after it",
        Backbone("ecot", "baselines:ecot", (SFT,), ("rl",), curve="ecot", like="imitation"),
        compared_with=("sft",),
        claim="RL beats the imitation of a reasoning and the same actions",
        simulated=True,
    )
    yield Arm(
        "language-rl",
        "SFT + language RL",
        "SFT, then GRPO on the RL subset's frames, asked for the next movement as multiple choice",
        _own_rl("language-rl", "language_rl"),
        compared_with=("sft",),
        claim="RL on actions beats RL on the next movement as multiple choice",
        question="movement_choice",
        simulated=True,
    )
    yield Arm(
        "trajectory-rl",
        "SFT + trajectory RL",
        "SFT, then GRPO on the RL subset's frames, asked for the gripper's path in the image",
        _own_rl("trajectory-rl", "trajectory_rl"),
        compared_with=("sft",),
        claim="RL on actions beats RL on the gripper's path in the image",
        question="trace",
        simulated=True,
    )
    yield Arm(
        "roboalign",
        "RoboAlign",
        "SFT, then GRPO on the accuracy of the actions after the reasoning",
        RL,
        compared_with=("sft",),
        uses_rl_subset=True,
    )
    yield Arm(
        "extra-sft",
        "SFT + extra SFT",
        "SFT, then as many further SFT updates on the RL subset as GRPO made",
        EXTRA_SFT,
        claim="the gain is RL's and not that of more training on the same samples",
        uses_rl_subset=True,
    )
    yield Arm(
        "random",
        "Random",
        "the same architecture with random weights",
        Backbone("random", "align:random_backbone", (BASE,), together=False),
    )
    yield Arm(
        "blind",
        "Blind",
        "RoboAlign's backbone and head, shown a gray image",
        RL,
        claim="the policy needs to see",
        uses_rl_subset=True,
        blind=True,
    )
    yield Arm(
        "roboalign-visited",
        "RoboAlign on visited states",
        "SFT, then GRPO as RoboAlign's on the states that the SFT policy reaches by itself, with the "
        "expert's actions there",
        RL_VISITED,
        compared_with=("sft",),
        claim="RL on demonstrations beats RL on the states that the policy visits",
        simulated=True,
    )
    yield Arm(
        "sft-visited",
        "SFT + SFT on visited states",
        "SFT, then as many further SFT updates on those states as GRPO made",
        SFT_VISITED,
        compared_with=("sft", "roboalign-visited"),
        claim="RL on demonstrations beats SFT on the states that the policy visits",
        simulated=True,
    )
    yield from _token_rows("sft", "SFT", SFT, "")
    yield from _token_rows("roboalign", "RoboAlign", RL, "sft")
    yield from _token_rows("extra-sft", "SFT + extra SFT", EXTRA_SFT, "sft")
    yield from _token_rows("roboalign-visited", "RoboAlign on visited states", RL_VISITED, "sft")
    yield from _token_rows("sft-visited", "SFT + SFT on visited states", SFT_VISITED, "sft")
    yield _online_row("base", "Base", BASE)
    yield _online_row("sft", "SFT", SFT)
    yield _online_row("roboalign", "RoboAlign", RL, against="sft-online")
    yield _online_row("extra-sft", "SFT + extra SFT", EXTRA_SFT, against="sft-online")
    yield from _online_token_rows("sft", "SFT", SFT, "")
    yield from _online_token_rows("roboalign", "RoboAlign", RL, "sft")


ARMS: dict[str, Arm] = {arm.name: arm for arm in _rows()}
"""Every arm by name."""


def _known(name: str) -> str:
    if name not in ARMS:
        raise ValueError(f"arm `{name}` not found. Available: {', '.join(ARMS)}")
    return name


ArmName = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"enum": list(ARMS), "type": "string"})
]
"""The name of a row of `ARMS`."""


def policy_stage(arm: str) -> str:
    """Return the stage that makes an arm's policy, below the training seed's folder."""
    row = ARMS[arm]
    return f"{'online' if row.online else 'token-policy' if row.tokens else 'head'}/{arm}"


def backbones(arms: Iterable[str]) -> list[Backbone]:
    """Return the stages that make these arms' backbones, each once and after those that it starts
    from."""
    found: list[Backbone] = []

    def add(backbone: Backbone) -> None:
        for need in backbone.needs:
            add(need)
        if backbone not in found:
            found.append(backbone)

    wanted = set(arms)
    for name, arm in ARMS.items():
        if name in wanted:
            add(arm.backbone)
    return found


def pairs(arms: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs (before, after) of these arms that are compared: MAIN's first, then each
    other arm's."""
    wanted = set(arms)
    found = [(name, MAIN) for name in ARMS[MAIN].compared_with]
    found += [(arm.name, MAIN) for arm in ARMS.values() if arm.claim]
    found += [
        (before, arm.name)
        for arm in ARMS.values()
        if arm.name != MAIN
        for before in arm.compared_with
    ]
    return [pair for pair in found if set(pair) <= wanted]
