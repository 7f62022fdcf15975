"""Fixtures of the adapters' tests, and which warnings of the frameworks are not ours."""

import os
from collections.abc import Iterator

import pytest
from integration_cases import Rest

# No test may ask a hub: what a framework would download is a failure at once.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", WANDB_DISABLED="true")


@pytest.fixture
def rest(service_url) -> Iterator[Rest]:
    """Yield what the running service answers; adapters find its address in SNC_URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNC_URL", service_url)
        yield Rest(service_url)
