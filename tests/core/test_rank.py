"""The rank that messages carry."""

import pytest
import torch
from torch import distributed

from gradguard._core.rank import rank, with_rank


def test_no_rank_without_a_process_group():
    """Outside distributed training a message is as it is."""
    assert rank() is None
    assert with_rank("grad mode is off") == "grad mode is off"


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")
def test_the_rank_while_a_process_group_is_initialized():
    """While a process group is initialized a message begins with the rank, counted of all."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert rank() == (0, 1)
        assert with_rank("grad mode is off") == "rank 0 of 1: grad mode is off"
        assert torch.is_grad_enabled()
    finally:
        distributed.destroy_process_group()
    assert rank() is None
