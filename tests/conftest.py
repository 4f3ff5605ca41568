"""What every test shares."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import jaxtyping
import pytest
import shape_checks
import torch

from roboalign.core import progress

shape_checks.install()  # before the modules that it hooks are imported: none is by the above


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Stages set the thread count of their process; sums over another number of threads differ in their last bits."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def of_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run stages in threads of one process leave the name of one of them behind."""
    monkeypatch.setattr(progress, "_stage", "")


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what the code itself says to a wrong shape."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
