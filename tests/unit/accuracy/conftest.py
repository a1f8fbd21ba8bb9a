"""A server that answers as it is told to."""

from __future__ import annotations

import pytest

from tests.unit.accuracy.runs import Server


@pytest.fixture
def serving():
    started = []

    def start(*arguments, **others):
        started.append(Server(*arguments, **others))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
