"""No configuration of the machine's."""

import pytest

from sglang_rpc.config import CONFIG_ENV


@pytest.fixture(autouse=True)
def no_configuration_in_the_environment(monkeypatch):
    monkeypatch.delenv(CONFIG_ENV, raising=False)
