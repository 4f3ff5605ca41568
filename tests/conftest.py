"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Stages set the thread count of their process; sums over another number of threads differ in their last bits."""
    torch.set_num_threads(1)
