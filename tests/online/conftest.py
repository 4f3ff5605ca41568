"""A policy of a tiny MLLM with an untrained head, and its training on the toy benchmark."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_episodes import make_episodes, save_backbone
from toy_rolls import CONFIG, TASKS, Rolls

from roboalign.actions.normalize import ActionStats
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.online.config import OnlineConfig
from roboalign.online.improve import HeadLearner
from roboalign.online.train import train_online
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy


@pytest.fixture(scope="session")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> Mllm:
    folder = tmp_path_factory.mktemp("mllm") / "tiny"
    save_backbone(folder, make_episodes())
    return load_mllm(folder)


@pytest.fixture(scope="session")
def make_policy(mllm: Mllm) -> Callable[[], HeadPolicy]:
    """The same policy each time; with dropout and proprioception."""

    def make() -> HeadPolicy:
        torch.manual_seed(0)
        shape = HeadShape(vlm_width=48, action_dim=4, state_dim=4, horizon=4)
        sizes = {"width": 32, "heads": 2, "layers": 2, "vlm_inner_width": 32, "vlm_heads": 2}
        head = FlowMatchingHead(HeadConfig(**sizes, dropout=0.2, proprioception=True), shape)
        stats = ActionStats.fit(np.linspace(-1, 1, 40, dtype=np.float32)[:, None].repeat(4, 1))
        return HeadPolicy(mllm, head, View(layer=2, cameras=("top",)), stats, stats)

    return make


@pytest.fixture
def train(make_policy: Callable[[], HeadPolicy]) -> Callable[..., Rolls]:
    """Train in a folder; the rollouts have their own copy of the policy, as workers do."""

    def run(folder: Path, config: OnlineConfig = CONFIG, **rolls: object) -> Rolls:
        folder.mkdir(exist_ok=True)
        made = Rolls(make_policy(), folder, config, **rolls)  # type: ignore[arg-type]
        made.ledger = train_online(  # type: ignore[attr-defined]
            HeadLearner.of(make_policy(), config, 3), made, TASKS, config, folder, seed=3
        )
        return made

    return run
