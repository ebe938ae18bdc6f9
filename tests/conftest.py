"""Every test that can runs on every device there is."""

import pytest
import torch

# The tests' tensors are small: threads cost more than they bring, and beside another program much more.
torch.set_num_threads(1)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param
