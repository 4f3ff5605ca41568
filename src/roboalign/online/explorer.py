"""What runs next to the simulators: the policy that explores, and initial states that are met
several times."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from roboalign.online.config import OnlineConfig
from roboalign.online.flow_sde import explore, log_density, sde_std, velocity_of
from roboalign.sim.base import Benchmark, Environment, Observation
from roboalign.sim.rollout import Key, Planned
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy_input import key_digest


def repeated(benchmark: Benchmark, times: int) -> Benchmark:
    """Return a benchmark to run episodes of, whose seeds `seed * times`, `seed * times + 1`, ... are
    all the initial state of `seed`.

    So the rollouts of a group have different keys, and with them different noise.
    """
    return cast(Benchmark, _Repeated(benchmark, times))


@dataclass(frozen=True)
class _Repeated:
    benchmark: Benchmark
    times: int

    def make(self, task: str) -> "_RepeatedEnvironment":
        return _RepeatedEnvironment(self.benchmark.make(task), self.times)


class _RepeatedEnvironment:
    def __init__(self, environment: Environment, times: int) -> None:
        self._environment, self._times = environment, times

    def reset(self, seed: int) -> None:
        self._environment.reset(seed // self._times)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)


@dataclass
class Published:
    """A file of weights that the training replaces before its rollouts."""

    path: Path
    _known: tuple[int, int] = (0, 0)

    def newer(self) -> dict[str, torch.Tensor] | None:
        """Return the weights if the file is another one, or was never read; None otherwise, and if
        a file that was read is gone."""
        if self._known != (0, 0) and not self.path.exists():
            return None
        found = self.path.stat()
        now = (found.st_ino, found.st_mtime_ns)
        if now == self._known:
            return None
        self._known = now
        return load_file(self.path)


@dataclass
class Explorer:
    """The head's policy with one step of each decision's flow drawn from the SDE.

    It keeps of each decision what an update needs, as safetensors: the hidden states, rounded as
    the policy rounds them, the drawn step with the chunk before and after it, the log-density, and when it was.
    """

    policy: HeadPolicy
    weights: Published
    """The head's, read at the start of episodes."""
    noise: float
    seed: int

    @torch.no_grad()
    def __call__(self, observations: list[Observation], keys: list[Key]) -> Planned:
        """Return the chunks of one decision each, in raw units."""
        if all(step == 0 for _, _, step in keys):
            self.refresh()
        policy, own = self.policy, [("online", self.seed, *key) for key in keys]
        device = policy.mllm.device
        read, counts = policy.read(observations)
        states, mask = policy.view.encode(policy.mllm, read, multiple=policy.multiple)
        state = policy.state(observations)
        start = torch.stack([policy.noise(key) for key in own]).to(device)
        draws = [_draws(key, policy.sampling_steps, start.shape[1:]) for key in own]
        step = torch.tensor([one for one, _ in draws], device=device)
        drawn = torch.stack([one for _, one in draws]).to(device)
        policy.head.eval()
        velocity = velocity_of(policy.head, states.float(), mask, state)
        steps, noise = policy.sampling_steps, self.noise
        done = explore(velocity, start, step, drawn, steps=steps, noise=noise)
        logprob = log_density(done.after, done.mean, sde_std(step, steps, noise))
        kept = {
            "before": done.before,
            "after": done.after,
            "step": step,
            "logprob": logprob,
            "at": torch.tensor([at for _, _, at in keys]),
            **({} if state is None else {"state": state}),
        }
        looks = [
            to_bytes(
                {name: value[row].cpu().contiguous() for name, value in kept.items()}
                | {"states": states[row][mask[row]].cpu().contiguous()}
            )
            for row in range(len(keys))
        ]
        return Planned(policy.raw(done.chunk.cpu().numpy(), observations), counts, looks)

    def refresh(self) -> None:
        """Take over newer weights."""
        if (newer := self.weights.newer()) is not None:
            self.policy.head.load_state_dict(newer)


def load_explorer(
    config: OnlineConfig, seed: int, folder: Path, weights: Path, threads: int, device: str
) -> Explorer:
    """Return the policy that explores, as the simulator's workers call it."""
    torch.set_num_threads(threads)
    return Explorer(HeadPolicy.load(folder, device), Published(weights), config.noise, seed)


def _draws(key: Sequence[str | int], steps: int, shape: Sequence[int]) -> tuple[int, torch.Tensor]:
    """Return which step a decision draws, and the standard normal noise for it."""
    seed = int.from_bytes(key_digest((*key, "sde")), "little", signed=True)
    generator = torch.Generator().manual_seed(seed)
    step = int(torch.randint(steps, (), generator=generator))
    return step, torch.randn(*shape, generator=generator)
