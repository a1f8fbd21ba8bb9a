"""Find the policy that `--rpc-policy` names: built in, a package's entry point, or `package.module:function`.

Every process resolves the name by itself, so a policy's package must be importable in all of them.
"""

import re
from dataclasses import replace
from functools import cache
from importlib import metadata
from typing import cast

from sglang_rpc.errors import ConfigError
from sglang_rpc.policy import h2o, lightthinker, peak, random, rkv, rpc, snapkv, streaming, tova
from sglang_rpc.policy.base import CODE, Policy, Scores

#: The built-in policies that score candidates.
POLICIES: dict[str, Policy] = {
    found.name: found
    for found in (rpc.rpc, random.random, streaming.streaming, tova.tova, h2o.h2o, snapkv.snapkv, rkv.rkv, peak.peak)
}
#: Every built-in name: those, and the one that reads the token stream.
NAMES = (*POLICIES, lightthinker.NAME)

#: Entry point group in which a package registers its policies: `name = "package.module:function"`.
GROUP = "sglang_rpc.policies"

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def find_policy(name: str) -> Policy | None:
    """The policy that scores under this name; None for `lightthinker`, which scores nothing.

    Imports the package of a policy that is not built in, once per process. Raises ConfigError if no policy has this
    name, two have it, or it cannot be loaded.
    """
    if name == lightthinker.NAME:
        return None
    return POLICIES[name] if name in POLICIES else _from_outside(name)


def require_policy(name: str) -> None:
    """Check once, at start-up, that the name means one policy. Raises ConfigError like `find_policy`."""
    registered = _registered(name)
    if name in NAMES and registered:
        raise ConfigError(
            f"policy '{name}' is built in, and {_packages(registered)} registers the same name; "
            f"rename it there, or uninstall the package",
            CODE,
        )
    find_policy(name)


def accumulates(name: str) -> bool:
    """Whether the policy needs the attention of every decode step. Raises ConfigError like `find_policy`."""
    policy = find_policy(name)
    return policy is not None and policy.accumulates


@cache
def _from_outside(name: str) -> Policy:
    registered = _registered(name)
    if len(registered) > 1:
        raise ConfigError(
            f"policy '{name}' is registered by {_packages(registered)}; "
            f"name one of them by its path, for example --rpc-policy {registered[0].value}",
            CODE,
        )
    if registered:
        return as_policy(_load(name, registered[0]), name)
    if _PATH.fullmatch(name):
        return as_policy(_load(name, metadata.EntryPoint(name, name, GROUP)), name)
    known = (*NAMES, *sorted({point.name for point in metadata.entry_points(group=GROUP)} - {*NAMES}))
    raise ConfigError(
        f"policy must be one of {', '.join(known)}, got {name!r}; to use your own, "
        f"give --rpc-policy package.module:function, or register a name in the entry point group {GROUP}",
        CODE,
    )


def as_policy(found: object, name: str) -> Policy:
    """A record under this name of what a package offers: a `Policy`, or a plain function of layer and configuration.

    Raises ConfigError if it is neither.
    """
    if isinstance(found, Policy):
        return replace(found, name=name)
    if isinstance(found, type) or not callable(found):
        raise ConfigError(
            f"policy '{name}' must be a function scores(layer, config) or a sglang_rpc.policy.base.Policy, "
            f"got {found!r:.80}",
            CODE,
        )
    return Policy(name, cast(Scores, found))


def _load(name: str, point: metadata.EntryPoint) -> object:
    try:
        return point.load()
    except AttributeError as error:
        raise ConfigError(
            f"policy '{name}' could not be loaded from {point.value}: {error}; check the name", CODE
        ) from error
    except Exception as error:  # a package's own code runs here
        raise ConfigError(
            f"policy '{name}' could not be loaded from {point.value}: {type(error).__name__}: {error}; "
            "its package must be importable where the server runs",
            CODE,
        ) from error


def _registered(name: str) -> list[metadata.EntryPoint]:
    return sorted(metadata.entry_points(group=GROUP, name=name), key=lambda point: point.value)


def _packages(points: list[metadata.EntryPoint]) -> str:
    """The packages that these are from, as a part of a sentence."""
    return " and ".join(f"{point.dist.name if point.dist else 'a package'} ({point.value})" for point in points)
