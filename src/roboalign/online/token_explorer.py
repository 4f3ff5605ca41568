"""What runs next to the simulators where the MLLM's own tokens are trained."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from roboalign.mllm.encode import Encoded
from roboalign.online.explorer import Published
from roboalign.sim.base import Observation
from roboalign.sim.rollout import Key, Planned
from roboalign.vla.token_answer import TokenAnswer
from roboalign.vla.token_policy import TokenPolicy
from roboalign.vla.token_writer import sampled_tokens


@dataclass
class TokenExplorer:
    """The token policy that draws its tokens.

    It keeps of each decision what an update needs, as safetensors: what the MLLM was shown and
    told, the tokens of its answer, which of them it chose itself, and when it was.
    """

    policy: TokenPolicy
    """Its temperature is above 0, and it gives one answer."""
    weights: Published
    """Those that are trained, read at the start of episodes."""
    seed: int

    def __call__(self, observations: list[Observation], keys: list[Key]) -> Planned:
        """Return the chunks of one decision each, in raw units."""
        if all(step == 0 for _, _, step in keys):
            self.refresh()
        policy, own = self.policy, [("online", self.seed, *key) for key in keys]
        answers = [row[0] for row in policy.answers(observations, own)]
        chunks = policy.settle(observations, own, [one.chunk for one in answers])
        looks = [
            to_bytes(self._look(seen, answer) | {"at": torch.tensor(at)})
            for seen, answer, (_, _, at) in zip(observations, answers, keys, strict=True)
        ]
        return Planned(chunks, [one.counts() for one in answers], looks)

    def _look(self, seen: Observation, answer: TokenAnswer) -> dict[str, Tensor]:
        policy = self.policy
        chosen = sampled_tokens(policy.mllm, answer.ids, policy.config, closed=answer.closed)
        # A closed reasoning's log-probability counts tokens that were dropped.
        logprob = float("nan") if answer.closed else answer.logprob
        return {
            "ids": torch.tensor(answer.ids, dtype=torch.long),
            "chosen": torch.tensor(chosen, dtype=torch.bool),
            "logprob": torch.tensor(logprob),
            "instruction": torch.tensor(list(seen.instruction.encode()), dtype=torch.uint8),
            **{
                f"camera {name}": torch.from_numpy(np.ascontiguousarray(seen.images[name]))
                for name in policy.cameras
            },
        }

    def refresh(self) -> None:
        """Take over newer weights."""
        if (newer := self.weights.newer()) is not None:
            load_trained(self.policy.mllm.model, newer)


def kept_prompt(policy: TokenPolicy, look: Mapping[str, Tensor]) -> Encoded:
    """Return the prompt of a decision that was kept."""
    images = {name: look[f"camera {name}"].numpy() for name in policy.cameras}
    instruction = bytes(look["instruction"].tolist()).decode()
    return policy.prompt(Observation(images, np.zeros(0, np.float32), instruction))


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are not frozen, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write weights of `trained_weights` into a model with the same ones."""
    own = trained_weights(model)
    assert own.keys() == weights.keys(), "other weights are trained on the other side"
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])
