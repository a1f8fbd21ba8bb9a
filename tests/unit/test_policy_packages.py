"""Policies from outside: how a name is resolved, what is refused before anything is served, the conformance check."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from sglang_rpc.backends.choose import make_backend
from sglang_rpc.backends.policy_scores import try_policy
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy import resolve
from sglang_rpc.policy.base import Policy, policy
from sglang_rpc.policy.resolve import NAMES, POLICIES
from sglang_rpc.testing import check_policy, keeps, made_up_layer, policy_failures
from sglang_rpc.types import KVLayer
from tests.loops.decode_loop import Loop

MODULE = """
from sglang_rpc.policy.base import policy

def longest(layer, config):
    return layer.keys.float().norm(dim=-1).T

@policy(pooling="max", whole_groups=True)
def decorated(layer, config):
    return layer.keys.float().norm(dim=-1).T

number = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts packages with entry points on the path, as an installation does."""
    resolve._from_outside.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(package: str, points: str, source: str = MODULE) -> None:
        (tmp_path / f"{package}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{resolve.GROUP}]\n{points}\n")

    yield add
    resolve._from_outside.cache_clear()
    for name in ("mine", "theirs", "broken"):
        sys.modules.pop(name, None)


def test_a_plain_function_becomes_a_policy_under_the_name_it_is_registered_by(install):
    install("mine", "long = mine:longest\nwide = mine:decorated")
    found = resolve.find_policy("long")
    assert (found.name, found.pooling, found.whole_groups, found.rule) == ("long", None, False, None)
    wide = resolve.find_policy("wide")
    assert (wide.name, wide.pooling, wide.whole_groups) == ("wide", "max", True)
    assert resolve.find_policy("mine:decorated").name == "mine:decorated"
    assert not resolve.accumulates("wide")
    for name in NAMES:
        resolve.require_policy(name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bogus", r"policy must be one of rpc, .*lightthinker, long, none, rpc2, got 'bogus'; to use your own, give "),
        ("mine:nothing", "policy 'mine:nothing' could not be loaded from mine:nothing: .*no attribute 'nothing'"),
        ("absent.module:f", "could not be loaded from absent.module:f: ModuleNotFoundError: No module named 'absent'"),
        ("broken:f", "could not be loaded from broken:f: ZeroDivisionError: division by zero; its package must"),
        ("mine:number", r"policy 'mine:number' must be a function scores\(layer, config\) or .*, got 3"),
        ("none", r"policy 'none' must be a function .*, got 3"),
        ("rpc", r"policy 'rpc' is built in, and theirs \(theirs:longest\) registers the same name; rename it"),
        ("long", r"'long' is registered by mine \(mine:longest\) and theirs \(theirs:decorated\); name one of them by"),
    ],
)
def test_a_name_that_is_no_policy_is_refused_in_one_sentence(install, name, sentence):
    install("mine", "long = mine:longest\nnone = mine:number")
    install("theirs", "rpc = theirs:longest\nlong = theirs:decorated\nrpc2 = theirs:longest")
    install("broken", "", "1 / 0")
    with pytest.raises(ConfigError, match=sentence) as refused:
        resolve.require_policy(name)
    assert "\n" not in str(refused.value)


def test_pooling_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"pooling of policy 'scores' must be one of .*, got 'median'"):
        policy(pooling="median")(lambda_scores())


def lambda_scores():
    def scores(layer, config):
        return layer.keys.float().norm(dim=-1).T

    return scores


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_a_policy_from_outside_keeps_what_it_scores_highest(install, aggregation):
    install("mine", "long = mine:longest")
    loop = Loop(
        RPCConfig(interval=16, window=4, ratio=4, scope="all", policy="long", aggregation=aggregation), check=False
    )
    request = loop.add()
    loop.run(20)
    assert request.done
    for layer, held in enumerate(loop.held(request)):
        lengths = loop.keys[1, layer, 5:21].norm(dim=-1)  # [16, kv_heads]
        for head, kept in enumerate(held):
            own = lengths[:, head] if aggregation == "group" else lengths.sum(1)
            assert kept[:4] == sorted(own.topk(4).indices.tolist())


BROKEN = {
    "half": (lambda layer, config: layer.keys.norm(dim=-1).T.half(), "must return float32, got torch.float16"),
    "transposed": (lambda layer, config: layer.keys.float().norm(dim=-1), r"must return \[1 or kv_heads, N\], here"),
    "flat": (lambda layer, config: layer.keys.float().norm(dim=-1).sum(1), r"\(1, .*\), got \(\d+,\)"),
    "nothing": (lambda layer, config: None, "must return a tensor, got NoneType"),
    "not a number": (lambda layer, config: layer.keys.float().sum(-1).T.log(), "must return finite numbers, and"),
    "one argument": (lambda layer: layer, "TypeError: .*takes 1 positional argument but 2 were given"),
    "mixed dtypes": (lambda layer, config: (layer.keys @ layer.queries[-1, :2].float().T).amax(-1)[None], "Error: "),
}


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "mixed dtypes"])
def test_scores_that_cannot_be_used_are_refused_before_anything_is_served(name, monkeypatch):
    scores, sentence = BROKEN[name]
    monkeypatch.setitem(POLICIES, "bad", Policy("bad", scores))
    with pytest.raises(ConfigError, match=f"policy 'bad' cannot score a layer of this model: .*{sentence}") as refused:
        Loop(RPCConfig(interval=16, window=4, ratio=4, scope="all", policy="bad"), check=False)
    assert "\n" not in str(refused.value)


def test_the_trial_is_of_the_models_dtype():
    keys = torch.zeros(8, 2, 16, dtype=torch.uint8)
    like = KVLayer(keys, keys, torch.float8_e5m2, 0.25)
    ring = torch.zeros(2, 4, 4, 16, dtype=torch.bfloat16)
    for name in POLICIES:
        try_policy(POLICIES[name], RPCConfig(window=4), like, ring)
    seen = []
    spy = replace(
        POLICIES["tova"], scores=lambda layer, config: seen.append(layer) or POLICIES["tova"].scores(layer, config)
    )
    try_policy(spy, RPCConfig(window=4), like, ring)
    (layer,) = seen
    assert (layer.keys.dtype, layer.queries.dtype) == (torch.float8_e5m2, torch.bfloat16)
    assert (layer.keys.shape[1:], layer.queries.shape) == ((2, 16), (4, 4, 16))


# --- the conformance check ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_built_in_policies_conform(name):
    check_policy(name)


def attend(layer, queries):
    return layer.attention(queries)


calls: list[int] = []


def lengths(layer):
    return layer.keys.float().norm(dim=-1).T


def remembers(layer, config):
    last = calls[-1] if calls else 0
    calls.append(layer.index)
    return lengths(layer) + last


BREAKS = {
    "in place": (
        lambda layer, config: attend(layer, layer.queries.mul_(2)),
        {},
        r"changes layer\.queries in place; work on a copy",
    ),
    "host": (
        lambda layer, config: lengths(layer) / float(lengths(layer).max()),
        {},
        "the host waits for the device in aten::_local_scalar_dense",
    ),
    "mask": (
        lambda layer, config: lengths(layer) + lengths(layer)[lengths(layer) > 1].sum(),
        {},
        "the host waits for the device in aten::index ",
    ),
    "unseeded": (lambda layer, config: torch.rand(1, len(layer.keys)), {}, "differently the second time; draw from"),
    "undeclared seed": (
        lambda layer, config: lengths(layer) + layer.seed,
        {},
        r"depend on layer\.seed, which is 0 unless",
    ),
    "no seed": (
        lambda layer, config: attend(layer, layer.queries),
        dict(seeded=True),
        r"the same for another layer\.seed",
    ),
    "memory": (remembers, {}, "depend on the layers and requests scored before"),
    "maximum over query heads": (POLICIES["rkv"].scores, {}, "with query heads that share a KV head do not add up"),
    "maximum over all heads": (
        lambda layer, config: lengths(layer).amax(0)[None],
        dict(whole_groups=True),
        "with whole KV heads do not add up to those of one rank; use sums over heads",
    ),
    "all alike": (lambda layer, config: torch.ones(1, len(layer.keys)), {}, "gives all candidates one score"),
    "undeclared attention": (POLICIES["h2o"].scores, {}, "it raised AssertionError"),
    "one candidate": (
        lambda layer, config: lengths(layer) / lengths(layer).std(1, keepdim=True),
        {},
        "with one candidate, it must return finite",
    ),
}


@pytest.mark.filterwarnings("ignore:std")  # torch's, of one candidate
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_policy_fails_with_a_sentence(name):
    scores, said, sentence = BREAKS[name]
    with pytest.raises(AssertionError, match=sentence) as failed:
        check_policy(Policy("bad", scores, **said))
    assert all(line.startswith("policy 'bad': ") for line in str(failed.value).splitlines())


@pytest.mark.parametrize("name", BROKEN)
def test_scores_that_cannot_be_used_fail_the_check(name):
    scores, sentence = BROKEN[name]
    with pytest.raises(AssertionError, match=sentence):
        check_policy(scores)


def test_lightthinker_scores_nothing_to_check():
    with pytest.raises(AssertionError, match="policy 'lightthinker' reads the token stream and scores nothing"):
        policy_failures("lightthinker")


def test_keeps_says_which_candidates_stay():
    layer = made_up_layer(30)
    best = layer.keys.float().norm(dim=-1).sum(1).topk(7).indices.sort().values
    assert keeps(lambda layer, config: layer.keys.float().norm(dim=-1).T, layer, 7) == [best.tolist()]
    apart = keeps(
        lambda layer, config: layer.keys.float().norm(dim=-1).T,
        made_up_layer(30, group=True),
        7,
        RPCConfig(aggregation="group"),
    )
    assert apart == layer.keys.float().norm(dim=-1).T.topk(7).indices.sort().values.tolist()


def test_scorings_that_do_not_know_it_are_refused(install):
    install("mine", "long = mine:longest")
    with pytest.raises(ConfigError, match="scoring 'triton' is not available under policy 'long'; use 'auto'"):
        make_backend(RPCConfig(policy="long", scoring="triton"), [], None, torch.zeros(1, 1), None)
