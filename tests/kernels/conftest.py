"""What tests of kernels share: a number of threads that does not outlive the test."""

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def use_threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads; the one from before comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
