"""What every test shares."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import jaxtyping
import pytest
import shape_checks
import torch

from roboalign.core import progress

gc.disable()  # until all test files are imported
shape_checks.install()  # before the modules that it hooks are imported: none is by the above

TESTS = Path(__file__).parent
SLOWEST = (
    "test_end_to_end.py",
    "test_scale_benchmark.py",
    "test_plugin_package.py",
    "backbones/test_backbones.py",
    "test_own_road.py",
    "plan/test_plan_rehearse.py",
    "sim/libero/test_sim_libero.py",
    "mllm/test_mllm_join.py",
    "align/test_align_lora.py",
    "distributed/test_distributed_connector.py",
    "sim/libero/test_stages_libero.py",
    "align/test_align_resume.py",
    "harness/test_harness_eval.py",
    "sim/calvin/test_sim_calvin_run.py",
    "distributed/test_distributed_pipeline.py",
    "test_endings.py",
    "distributed/test_distributed_fsdp2.py",
    "distributed/test_distributed_sft.py",
    "test_kills.py",
    "cli/test_cli_publish.py",
    "align/test_align_sft.py",
    "align/test_align_grpo_answers.py",
    "run/test_pipeline.py",
    "mixture/test_mixture_resume.py",
    "vla/test_vla_train.py",
)
"""The files that take longest, in about that order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first: one that begins last keeps one of two processes busy alone."""
    order = {TESTS / name: number for number, name in enumerate(SLOWEST)}
    assert all(path.is_file() for path in order), "SLOWEST names a file that is not there"
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_collection_finish() -> None:
    """Leave out of every later garbage collection what is imported by now: product code collects often."""
    gc.freeze()
    gc.enable()


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
