"""SGLang as these tests import it runs on a CPU."""

from __future__ import annotations

import pytest

from sglang_rpc.startup import cpu


@pytest.fixture(autouse=True, scope="session")
def sglang_on_a_cpu():
    cpu.prepare()
