"""Online RL of a token policy: what is kept and learned of an answer, that it learns, and a kill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from synthetic_tokens import DIM, EPISODES, build_parts, make

from roboalign.align.grpo.config import RlConfig
from roboalign.align.lora import LoraConfig
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_jsonl
from roboalign.mllm.encode import collate
from roboalign.mllm.load import load_mllm
from roboalign.online.config import OnlineConfig
from roboalign.online.decisions import Trajectory
from roboalign.online.explorer import Published
from roboalign.online.groups import Groups
from roboalign.online.token_explorer import TokenExplorer, trained_weights
from roboalign.online.token_learner import TokenLearner
from roboalign.online.train import WEIGHTS, publish, train_online
from roboalign.sim.base import Observation
from roboalign.sim.parallel import EpisodeKey
from roboalign.sim.rollout import EpisodeResult
from roboalign.vla.token_policy import TokenPolicy

TASKS = ("first", "second")
CONFIG = OnlineConfig(updates=2, groups=2, group_size=4, epochs=2, batch_size=8)
LENGTHS = {"max_reasoning_tokens": 5, "max_block_tokens": 4}
TUNED = RlConfig(learning_rate=1e-3, weight_decay=0.0, micro_batch_size=3, max_grad_norm=10.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build_parts(tmp_path_factory.mktemp("tokens") / "model")


def exploring(parts: dict[str, Any], mode: str, tuned: RlConfig) -> TokenPolicy:
    policy = make(parts, mode, temperature=1.0, **LENGTHS)
    tuned.choose_trained(policy.mllm)
    return policy


@dataclass
class Rolls:
    """Episodes of two decisions each. Solved: more even tokens than odd ones were written."""

    explorer: TokenExplorer
    before: Callable[[], None] = lambda: None

    def __call__(
        self, episodes: Sequence[EpisodeKey], finish: Callable[[EpisodeResult], None]
    ) -> None:
        self.before()
        looks: dict[EpisodeKey, list[bytes]] = {key: [] for key in episodes}
        for step in (0, 3):
            planned = self.explorer(
                [observed(TASKS.index(task), step) for task, _ in episodes],
                [(*key, step) for key in episodes],
            )
            assert planned.chunks.shape == (len(episodes), 4, DIM)
            for key, look in zip(episodes, planned.kept, strict=True):
                looks[key].append(look)
        for (task, seed), kept in looks.items():
            ids = torch.cat([from_bytes(one)["ids"] for one in kept])
            solved = bool((ids % 2 == 0).float().mean() > 0.5)
            finish(EpisodeResult(task, seed, solved, 5, None, 0.1, kept=tuple(kept)))


def observed(number: int, t: int) -> Observation:
    one = EPISODES[number]
    images = {camera: one.frame(camera, t) for camera in one.images}
    return Observation(images, one.state[t], one.instruction)


def rolled(
    parts: dict[str, Any], folder: Path, mode: str, tuned: RlConfig = TUNED
) -> tuple[TokenLearner, Groups]:
    """A learner, and a group of each task with advantages 1 and -1 in turn."""
    start = make(parts, mode, temperature=1.0, **LENGTHS)
    learner = TokenLearner.of(start, CONFIG, tuned)
    folder.mkdir(exist_ok=True)
    publish(learner, folder)
    published = Published(folder / WEIGHTS)
    results: list[EpisodeResult] = []
    Rolls(TokenExplorer(exploring(parts, mode, tuned), published, 3))(
        [(task, seed) for task in TASKS for seed in range(4)], results.append
    )
    return learner, Groups([Trajectory.of(one) for one in results], [1.0, -1.0] * 4, found=2)


@pytest.mark.parametrize("mode", ["direct", "think"])
def test_the_first_gradient_is_that_of_the_policy_gradient(
    parts: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    """Against one forward pass a decision, unpadded: the mean over chosen tokens of -A log p."""
    learner, groups = rolled(parts, tmp_path, mode)
    decisions = learner._decisions(groups)
    assert len(decisions) == 16 and {one.advantage for one in decisions} == {1.0, -1.0}
    if mode == "think":  # an untrained model never ends its reasoning
        opening = learner.policy.mllm.tokenizer("</think><answer><ACTION_START>")["input_ids"]
        for one in decisions:
            assert one.ids[5 : 5 + len(opening)] == opening and np.isnan(one.logprob)
            assert one.chosen[:5] == [True] * 5 and one.chosen[5 + len(opening) :]
            assert not any(one.chosen[5 : 5 + len(opening)])
    else:
        assert all(all(one.chosen) for one in decisions)
    model = load_mllm(parts["folder"])
    total = torch.zeros(())
    for one in decisions:
        prompt = collate(model, [one.prompt], padding_side="left")
        del prompt["labels"]
        tail = torch.tensor([one.ids])
        prompt["input_ids"] = torch.cat([prompt["input_ids"], tail], dim=1)
        prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        if "mm_token_type_ids" in prompt:
            kinds = prompt["mm_token_type_ids"]
            prompt["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(tail)], dim=1)
        logits = model.model(**prompt).logits[0, -len(one.ids) - 1 : -1]
        logp = logits.log_softmax(-1)[torch.arange(len(one.ids)), tail[0]]
        total = total - one.advantage * logp[torch.tensor(one.chosen)].sum()
    (total / sum(sum(one.chosen) for one in decisions)).backward()
    naive = {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}

    start = {name: value.clone() for name, value in learner.weights().items()}
    learner.tuned = TUNED.model_copy(update={"max_grad_norm": 1e9})
    learner.config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 16})
    trained = [p for p in learner.policy.mllm.model.parameters() if p.requires_grad]
    learner.optimizer = torch.optim.SGD(trained, lr=1.0)
    found = learner.learn(groups, torch.Generator().manual_seed(0))
    assert found["ratio"] == 1.0 and found["ratio_off"] == 0.0 and found["kl"] == 0.0
    assert found["decisions"] == 16 and found["drift"] < 1e-4
    assert found["loss"] == pytest.approx(
        np.average([-1, 1], weights=weights_of(decisions)), abs=1e-6
    )
    for name, value in learner.weights().items():
        if name in naive:
            torch.testing.assert_close(start[name] - value, naive[name], atol=2e-5, rtol=2e-4)


def weights_of(decisions: Sequence[Any]) -> list[int]:
    return [
        sum(sum(one.chosen) for one in decisions if one.advantage == sign) for sign in (1.0, -1.0)
    ]


def test_rollouts_of_other_weights_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    learner, groups = rolled(parts, tmp_path, "direct")
    with torch.no_grad():
        learner.policy.mllm.model.get_output_embeddings().weight.mul_(3.0)
    with pytest.raises(RoboAlignError, match="log-probabilities differ by"):
        learner.learn(groups, torch.Generator().manual_seed(0))


def trained(
    parts: dict[str, Any], folder: Path, config: OnlineConfig, tuned: RlConfig, **rolls: Any
) -> TokenLearner:
    folder.mkdir(exist_ok=True)
    learner = TokenLearner.of(make(parts, max_block_tokens=4), config, tuned)
    explorer = TokenExplorer(exploring(parts, "direct", tuned), Published(folder / WEIGHTS), 3)
    train_online(learner, Rolls(explorer, **rolls), TASKS, config, folder, seed=3)
    return learner


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8, alpha=16)])
def test_what_succeeded_becomes_more_likely_and_is_what_the_saved_policy_writes(
    parts: dict[str, Any], tmp_path: Path, lora: LoraConfig | None
) -> None:
    tuned = TUNED.model_copy(update={"lora": lora, "learning_rate": 1e-2 if lora else 1e-3})
    learner, groups = rolled(parts, tmp_path, "direct", tuned)
    assert len(learner.weights()) < 63 or lora is None, "adapters alone are published"
    decisions = learner._decisions(groups)
    first = learner._statistics(decisions)[1].logp.sum(dim=1).detach()
    found = learner.learn(groups, torch.Generator().manual_seed(0))
    rise = learner._statistics(decisions)[1].logp.sum(dim=1).detach() - first
    good = torch.tensor([one.advantage > 0 for one in decisions])
    assert rise[good].mean() > 0.05 > -0.05 > rise[~good].mean()
    assert found["ratio_off"] > 0 and found["kl"] > 0 and found["grad_norm"] > 0
    learner.save(tmp_path / "policy")
    loaded = TokenPolicy.load(tmp_path / "policy")
    assert (loaded.mllm.folder or Path()).name == "model" and learner.lora is None
    again, kept, start = (
        one.answers([observed(0, 1), observed(1, 2)], [("t", 0), ("t", 1)])
        for one in (loaded, learner.policy, exploring(parts, "direct", TUNED))
    )
    assert [row[0].ids for row in again] == [row[0].ids for row in kept]
    assert [row[0].logprob for row in kept] != [row[0].logprob for row in start]


def test_a_stopped_training_ends_with_the_same_weights(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    whole = trained(parts, tmp_path / "whole", CONFIG, TUNED)

    def stop() -> None:
        if (tmp_path / "torn/metrics.jsonl").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(parts, tmp_path / "torn", CONFIG, TUNED, before=stop)
    again = trained(parts, tmp_path / "torn", CONFIG, TUNED)
    for name, value in trained_weights(whole.policy.mllm.model).items():
        assert torch.equal(value, again.weights()[name]), name
    assert len(read_jsonl(tmp_path / "torn/metrics.jsonl")) == 2
    with pytest.raises(RoboAlignError, match="the checkpoint is of other settings"):
        trained(parts, tmp_path / "torn", CONFIG, TUNED.model_copy(update={"temperature": 1.5}))


def test_checkpointing_recomputes_the_layers_and_changes_no_gradient(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    """Each text layer runs once more for each backward pass: 1 without gradients, then 1 or 2."""
    found = []
    for on in (False, True):
        tuned = TUNED.model_copy(update={"gradient_checkpointing": on, "micro_batch_size": 16})
        learner, groups = rolled(parts, tmp_path / str(on), "direct", tuned)
        learner.config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 16})
        model, calls = learner.policy.mllm.model, []
        norm = model.get_decoder().layers[0].input_layernorm
        norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        learner.learn(groups, torch.Generator().manual_seed(0))
        assert not any(one.training for one in model.modules())
        weights = torch.cat([one.flatten() for one in trained_weights(model).values()])
        found.append((len(calls), weights))
    (plain, before), (recomputed, after) = found
    assert (plain, recomputed) == (2, 3)
    assert torch.allclose(before, after, atol=1e-6)
