"""Remember the last command of each episode, which a policy repeats when it has no new chunk."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from roboalign.vla.policy_input import NoiseKey

MOST_EPISODES = 4096
"""Episodes remembered at a time; the one that has been silent longest is forgotten first."""
_Episode = tuple[str | int | None, ...]


@dataclass(frozen=True)
class Moment:
    """One decision: the episode, the step in it, and the command before it."""

    episode: _Episode
    step: int
    last: Float[np.ndarray, " action"] | None
    """The last command before this decision; None before the first."""


@dataclass(frozen=True)
class _Decided:
    moment: Moment
    chunk: Float[np.ndarray, "horizon action"]


class CommandMemory:
    """Keep the latest chunk of each episode.

    A noise key names an episode by all of its parts but the last, a whole number: the step. From
    the steps of two decisions it follows how much of the chunk between them was executed. A key
    that ends in text names an episode as a whole, and without a key a decision belongs to the robot
    at this place of the batch; then the whole chunk counts as executed.
    """

    def __init__(self) -> None:
        self._decided: OrderedDict[_Episode, _Decided] = OrderedDict()

    def recall(self, key: NoiseKey | None, place: int) -> Moment:
        """Return the decision that is due. An episode that starts over has no command yet; a
        decision that is asked for again has the same one."""
        numbered = key is not None and len(key) > 1 and isinstance(key[-1], int)
        episode: _Episode = (None, place)
        if key is not None:
            episode = key[:-1] if numbered else key
        before = self._decided.get(episode)
        step = 0 if before is None else before.moment.step + len(before.chunk)
        if key is not None and numbered:
            step = int(key[-1])
        if before is None or step < before.moment.step:
            return Moment(episode, step, None)
        executed = step - before.moment.step
        if executed == 0:
            return before.moment
        return Moment(episode, step, before.chunk[min(executed, len(before.chunk)) - 1])

    def keep(self, moment: Moment, chunk: Float[np.ndarray, "horizon action"]) -> None:
        """Store what was decided."""
        self._decided[moment.episode] = _Decided(moment, chunk)
        self._decided.move_to_end(moment.episode)
        if len(self._decided) > MOST_EPISODES:
            self._decided.popitem(last=False)
