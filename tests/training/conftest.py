"""For all tests of training: the modules beside them, and what several of them use."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy_folder import folder, toy_set  # noqa: E402, F401


@pytest.fixture(scope="module")
def one_thread():
    """As other processes run: sums in another order would not be the same bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
