"""Send each trial's requests to the arm that the plan says, and tell nobody which one that is.

The router is a policy behind `PolicyServer`: a client sees one server, one contract and one name. What
differs between arms is the numbers in `actions`, and the time until they are there (`answer_after`).
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from roboalign.core.errors import RoboAlignError
from roboalign.serve.client import NoAnswer, RemotePolicy
from roboalign.serve.contract import Contract, Query
from roboalign.trial.desk import Desk, Running
from roboalign.trial.plan import LockedPlan, PlanKey

PLANNED = "the instruction of the plan"
"""Stands for the instruction of a request that has none."""


class BlindRouter:
    """Anything with `act_batch` for a server. Threads may share it; they take turns at an arm."""

    def __init__(self, desk: Desk, key: PlanKey, arms: Mapping[str, RemotePolicy]) -> None:
        self.desk, self.key, self.arms = desk, key, arms
        self.contract = shared_contract(desk.plan, arms)
        self._asked: Running | None = None
        self.listening = False
        """Until then every arm is asked, so that the first trial finds none of them cold."""

    def act_batch(
        self,
        observations: Sequence[Query],
        noise_keys: Sequence[Sequence[str | int] | None],
        guides: Sequence[tuple[np.ndarray, int] | None] | None = None,
    ) -> np.ndarray:
        """Return the chunks of the arm of the trial under way, float32 [B, H, A].

        Raises RoboAlignError, in the same words for every arm, between trials, after the time
        limit or the end of the trial, for another instruction than the plan's, and if the arm does not answer.
        """
        if not self.listening:
            return np.stack([self._warm_up(seen) for seen in observations])
        began = time.monotonic()
        previous = guides or [None] * len(observations)
        try:
            parts = zip(observations, noise_keys, previous)
            return np.stack([self._act(*part) for part in parts])
        finally:
            time.sleep(max(0.0, began + self.desk.plan.answer_after - time.monotonic()))

    def _warm_up(self, seen: Query) -> np.ndarray:
        chunks = [arm.act(seen) for arm in self.arms.values()]
        return chunks[0]

    def _act(
        self,
        seen: Query,
        noise_key: Sequence[str | int] | None,
        guide: tuple[np.ndarray, int] | None,
    ) -> np.ndarray:
        attempt = self.desk.running()
        if attempt is None:
            raise RoboAlignError(
                "no trial is under way", where="trial", fix="start it on the operator's page"
            )
        limit = self.desk.plan.seconds
        if limit is not None and time.monotonic() - attempt.began > limit:
            raise RoboAlignError(
                f"the {limit:g} seconds of this trial are over", where="trial", fix="note its end"
            )
        planned = self.desk.plan.tasks[attempt.trial.task].instruction
        if seen.instruction not in (PLANNED, planned):
            raise RoboAlignError(
                f"the plan says {planned!r}, this is {seen.instruction[:100]!r}",
                where="prompt",
                fix="send the planned instruction, or none",
            )
        previous, delay = guide or (None, 0)
        arm = self.arms[self.key.assignment[attempt.trial.number - 1]]
        try:
            if attempt is not self._asked:
                arm.reset()  # a server that records begins another episode
            self._asked = attempt
            asked = replace(seen, instruction=planned)
            chunk = arm.act(asked, noise_key, previous=previous, delay=delay)
        except RoboAlignError as error:
            raise self._neutral(attempt, error) from None
        if not self.desk.count(attempt, "requests"):
            raise RoboAlignError("this trial ended meanwhile", where="trial", fix="stop the robot")
        return chunk

    def _neutral(self, attempt: Running, error: RoboAlignError) -> RoboAlignError:
        """Count a fault, and return it without a word that could name the arm."""
        self.desk.count(attempt, "requests")
        if isinstance(error, NoAnswer) or "the server is stopping" in error.problem:
            self.desk.count(attempt, "unanswered")
            return RoboAlignError(
                "the policy does not answer: this attempt is void",
                where="trial",
                fix="have its servers looked after, then do the trial again",
            )
        self.desk.count(attempt, "faults")
        return RoboAlignError(
            "the policy answered with a fault", where="trial", fix="stop the robot and note it"
        )


def open_arms(
    plan: LockedPlan,
    addresses: Mapping[str, str],
    stack: ExitStack,
    *,
    api_key: str | None = None,
    timeout: float = 10.0,
) -> dict[str, RemotePolicy]:
    """Connect to the server of each arm. Raises RoboAlignError naming the arm that cannot be reached."""
    arms = {}
    for name in plan.arms:
        try:
            arm = RemotePolicy(addresses[name], None, api_key=api_key, timeout=timeout)
        except RoboAlignError as error:
            raise RoboAlignError(
                f"arm {name}: {error.problem}", where=error.where, fix=error.fix
            ) from None
        arms[name] = stack.enter_context(arm)
    return arms


def shared_contract(plan: LockedPlan, arms: Mapping[str, RemotePolicy]) -> Contract:
    """Return what all arms ask for and answer, under the name of the study.

    Raises RoboAlignError if two arms differ: a client would see which one it talks to.
    """
    contracts = {
        name: replace(
            Contract.from_metadata(arm.metadata, arm.uri), max_batch=1, model="", prompt=None
        )
        for name, arm in arms.items()
    }
    first, contract = next(iter(contracts.items()))
    for name, other in contracts.items():
        different = [
            field for field in vars(contract) if getattr(contract, field) != getattr(other, field)
        ]
        if different:
            field = different[0]
            raise RoboAlignError(
                f"`{field}` is {getattr(contract, field)!s:.120} for arm {first} and "
                f"{getattr(other, field)!s:.120} for arm {name}: a client would know them apart",
                where="arms",
                fix="serve policies of one interface (cameras, state, horizon, action space)",
            )
    return replace(contract, model=f"{plan.name} {plan.sha256[:12]}", prompt=PLANNED)


def check_policies(desk: Desk, arms: Mapping[str, RemotePolicy]) -> None:
    """Write down which policy each arm is, and refuse another one than in earlier rows of the log."""
    now = {name: str(arm.metadata.get("model")) for name, arm in arms.items()}
    if len(set(now.values())) < len(now):
        raise RoboAlignError(
            "two arms serve the same policy", where="arms", fix="check the addresses of the arms"
        )
    before = [row["arms"] for row in desk.log.rows if row["event"] == "opened"]
    for name, model in now.items():
        if before and before[0].get(name) != model:
            raise RoboAlignError(
                f"it serves {model} now and served {before[0].get(name)} when the study began",
                where=f"arm {name}",
                fix="serve the policy that the study began with",
            )
    desk.log.append("opened", arms=now)
