import pytest
from synthetic_episodes import make_episodes, save_backbone

from roboalign.episodes.episode import Episode
from roboalign.mllm.load import load_mllm


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return make_episodes()


@pytest.fixture(scope="session")
def backbone(tmp_path_factory, episodes):
    """Folder of a tiny untrained MLLM."""
    folder = tmp_path_factory.mktemp("mllm") / "tiny"
    save_backbone(folder, episodes)
    return folder


@pytest.fixture(scope="session")
def mllm(backbone):
    return load_mllm(backbone)
