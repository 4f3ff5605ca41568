import pytest
from synthetic_episodes import make_episodes, save_backbone
from synthetic_tokens import build_parts

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


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A tiny model in a folder, with action tokens, its FAST tokenizer, and raw chunks."""
    return build_parts(tmp_path_factory.mktemp("tokens") / "model")
