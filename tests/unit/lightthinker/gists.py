"""Gists and a configuration of LightThinker."""

from __future__ import annotations

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.lightthinker import Gists

GISTS = Gists((91, 92, 93), resume=99)
CONFIG = RPCConfig(policy="lightthinker", gist_tokens=(91, 92, 93), scope="all")


def config(**others) -> RPCConfig:
    return RPCConfig(policy="lightthinker", gist_tokens=(91, 92, 93), gist_resume=99, scope="all", **others)
