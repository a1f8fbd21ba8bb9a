"""What RPC's code reads of SGLang's objects, against what `contract/sglang/` and the table of assumptions declare.

mypy compares objects that have a Protocol, member by member, in both directions. What it does not follow, functions
and enumerations of SGLang and requests of any kind, is compared by name: a name that is also one of RPC's own, or of
the standard library or torch, passes there.
"""

import argparse
import array
import ast
import hashlib
import importlib.metadata
import inspect
import logging
import os
import pkgutil
import re
import sys
import time
import types
from pathlib import Path

import prometheus_client
import pytest
import torch
from mypy import api

from sglang_rpc import doctor, hooks
from sglang_rpc.contract import pins, sglang
from sglang_rpc.contract.assumptions import assumptions
from sglang_rpc.contract.targets import LATENT, LATER, SERVING, Assumption, assumed, assumptions_in
from sglang_rpc.contract.versions import VERSIONS
from tests.unit import reads_plugin

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sglang_rpc"
DECLARATIONS = PACKAGE / "contract" / "sglang"
MODULES = [importlib.import_module(f"{sglang.__name__}.{m.name}") for m in pkgutil.iter_modules(sglang.__path__)]
ALL = tuple(assumption for when in (SERVING, *LATER) for assumption in assumptions(when))
#: The code that meets SGLang's objects, without the declarations, what reads SGLang's source, and the machine's facts.
MEETS_SGLANG = [
    path
    for path in [
        *(PACKAGE / "hooks").rglob("*.py"),
        *(PACKAGE / "contract").rglob("*.py"),
        *(PACKAGE / "startup").glob("*.py"),
        PACKAGE / "engine.py",
        PACKAGE / "launch_server.py",
    ]
    if path.parent != DECLARATIONS and path.name not in ("assumptions.py", "machine.py", "source.py")
]

#: Attributes of a tokenizer and of a model's configuration, which are Transformers' own.
TRANSFORMERS = {"encode", "architectures", "all_special_ids", "is_fast", "get_added_vocab"}
PYTHON = (
    *(str, bytes, int, float, dict, list, set, frozenset, tuple, array.array, object, Exception, ImportError, Path),
    *(type, property, classmethod, types.FunctionType, types.CodeType, types.ModuleType),
    *(inspect, inspect.Parameter, inspect.Signature, os, os.path, sys, re, logging, logging.Logger, hashlib),
    *(argparse, argparse.ArgumentParser, hashlib.sha256(), re.Pattern, re.Match, importlib, pkgutil),
    *(__import__(name) for name in ("contextlib", "dataclasses", "functools", "json", "textwrap")),
    *(torch, torch.Tensor, torch.cuda, torch.cuda.Stream, torch.device, torch.nn, torch.nn.Module, torch.distributed),
    *(time, torch.distributed.distributed_c10d, torch.version, prometheus_client.Counter, prometheus_client.Gauge),
)
#: Names that are not written out where they are read, and how they are.
OTHERWISE_READ = {
    **dict.fromkeys(("AFTER", "AROUND", "BEFORE"), "HookType(kind): by value"),
    **dict.fromkeys(("MHA", "MHA_CHUNKED_KV", "MHA_ONE_SHOT"), "by their common beginning"),
}
#: Members of Protocols that mypy does not see read, and how they are.
READ_UNSEEN = {
    "memory.KVPool.quant_method": "by getattr, of pools of every kind",
    **dict.fromkeys(
        ("memory.LatentPool.dtype", "memory.LatentPool.layer_num", "memory.LatentPool.start_layer"),
        "as KVPool's, of pools of both kinds",
    ),
    **dict.fromkeys(
        ("disaggregation.NextBatchPlan.batch_to_run", "disaggregation.NextBatchPlan.running_batch"),
        "given to SGLang's class, by name",
    ),
    "memory.Tree.linker": "by getattr, of trees of every kind",
    "model.LatentAttention.attn_mqa": "by hasattr, to find these modules",
    **dict.fromkeys(
        (
            *(f"requests.GenerateReqInput.{name}" for name in ("return_indexer_topk", "return_routed_experts")),
            *(f"requests.Req.{name}" for name in ("return_indexer_topk", "return_routed_experts")),
            "requests.SamplingParams.beam_width",
            *("requests.Req.session", "requests.Session.streaming"),
        ),
        "by name, of requests of every kind (contract/refusals/request.py)",
    ),
    "windows.WindowKVPool.layer_num": "as KVPool's, of pools of both kinds",
    "server.CudaGraphConfig.prefill": "of `Arguments` (contract/refusals/server.py)",
    "server.Engine.server_args_class": "of SGLang's class itself, a base of RPC's",
    "server.ReasoningParser.detector": "of SGLang's class itself, made by RPC",
}
#: Not strict, and without torch's types, which would take ten times as long: only what attributes there are counts.
MYPY = """
[mypy]
python_version = 3.11
plugins = {plugin}
disable_error_code = safe-super, var-annotated
[mypy-sglang.*,torch.*,triton.*,flashinfer.*,prometheus_client.*,starlette.*,fastapi.*]
ignore_missing_imports = True
follow_imports = skip
"""
#: (file, name) of a `getattr` with a default, which would switch a check off in silence if SGLang renamed the name.
WITH_DEFAULT = {
    ("hooks/markers.py", "request_selectable_think_end_tokens"): "one detector has it, which is pinned",
    ("hooks/texts.py", "is_fast"): "Transformers' tokenizers have it, and SGLang's own are left alone",
    ("hooks/requests.py", "sampling_params"): "requests of every kind pass",
    ("contract/settings.py", "_CHECKED"): "RPC's own, of a prefill server",
    ("contract/refusals/facts.py", "kv_cache_layout"): "pools of every kind pass; RPC's own are pinned",
    ("contract/refusals/facts.py", "linker"): "trees of every kind pass; RPC's own is pinned",
    ("contract/refusals/facts.py", "quant_method"): "pools of every kind pass; RPC's own are pinned",
    ("contract/refusals/request.py", "field"): "requests of every kind pass; those with the fields are pinned",
    ("contract/refusals/request.py", "name"): "parameters of every kind pass; SGLang's own are pinned",
    ("contract/refusals/request.py", "sampling_params"): "requests of every kind pass",
    ("contract/refusals/request.py", "session"): "requests of every kind pass; the scheduler's have it, and are pinned",
}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def read_by(tree):
    """Names of attributes that are read, written or called, also by `getattr` and `hasattr`."""
    for node in ast.walk(tree):
        # `args`: argparse's, or `Arguments`, which says itself what is missing.
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "args":
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            yield from (argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant))


def made_by(tree):
    """Names that a module, class or function has of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2]


def written_in(tree):
    """Every name that might be read: attributes, keywords and strings, and methods that override SGLang's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword | ast.alias):
            yield getattr(node, "arg", None) or getattr(node, "name", None)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.ClassDef):
            yield from made_by(node)


def names_of(assumptions):
    """Names that these assumptions declare: attributes, or the last part of what is called."""
    return {name for a in assumptions for name in (a.attributes or a.target.split(".")[-1:])}


def undeclared(paths):
    ours = {
        name for path in PACKAGE.rglob("*.py") if path.parent != DECLARATIONS for name in made_by(parse(path))
    }  # RPC's own
    python = {name for thing in PYTHON for name in dir(thing)}
    read = {name for path in paths for name in read_by(parse(path))}
    known = names_of(ALL) | ours | python | TRANSFORMERS
    return sorted(name for name in read - known if not name.startswith(("rpc", "__")))


def unused(assumptions):
    written = {name for path in MEETS_SGLANG for name in written_in(parse(path))}
    return sorted(names_of(assumptions) - written - set(OTHERWISE_READ))


def check(tmp_path, *what):
    """What mypy says of this code, and the members of Protocols that it reads, writes or calls."""
    config = tmp_path / "mypy.ini"
    config.write_text(MYPY.format(plugin=reads_plugin.__name__))
    reads_plugin.READ.clear()
    # From nothing: code that mypy takes from its cache reads nothing.
    out, err, _ = api.run(["--config-file", str(config), "--cache-dir", os.devnull, *what])
    return out + err, set(reads_plugin.READ)


def declared_members():
    for module in MODULES:
        for protocol in (value for value in vars(module).values() if isinstance(value, type)):
            if protocol.__module__ == module.__name__:
                names = names_of(vars(protocol).get("rpc_assumed", ()))
                yield from (f"{module.__name__.rpartition('.')[2]}.{protocol.__name__}.{name}" for name in names)


# ---- objects, by mypy ---------------------------------------------------------------------------------------


def test_members_are_declared_and_used(tmp_path):
    """Else declare them in `contract/sglang/`, or delete them, and run `python -m sglang_rpc.doctor --pin`."""
    said, read = check(tmp_path, str(PACKAGE))
    assert said.startswith("Success"), said
    unread = set(declared_members()) - read
    assert sorted(unread - set(READ_UNSEEN)) == []
    assert sorted(set(READ_UNSEEN) - unread) == []


SAMPLE = """
from sglang_rpc.contract.sglang.batches import ForwardBatch
from sglang_rpc.contract.sglang.requests import Req

def hook(req: Req, forward_batch: ForwardBatch) -> None:
"""


def test_undeclared_members_are_seen(tmp_path):
    undeclared = {
        "print(req.surr_offset)": '"Req" has no attribute "surr_offset"',
        "req.surr_offset = 1": '"Req" has no attribute "surr_offset"',
        "print(req.kv.swa_evicted_seqlen)": '"ReqKvInfo" has no attribute "swa_evicted_seqlen"',
        "forward_batch.forward_mode.is_mixed()": '"ForwardMode" has no attribute "is_mixed"',
    }
    hook = tmp_path / "hook.py"
    hook.write_text(SAMPLE + "".join(f"    {code}\n" for code in undeclared))
    said, _ = check(tmp_path, str(hook))
    lines = said.splitlines()
    assert [error in line for error, line in zip(undeclared.values(), lines, strict=False)] == [True] * len(undeclared)


def test_only_what_code_uses_counts_as_used(tmp_path):
    hook = tmp_path / "hook.py"
    hook.write_text(f"{SAMPLE}    req.prefix_len = 1\n    req.kv.mark_kv_released()\n    print(req.rid)\n")
    said, read = check(tmp_path, str(hook))
    assert said.startswith("Success"), said
    used = {"requests.Req.prefix_len", "requests.Req.kv", "requests.ReqKvInfo.mark_kv_released", "requests.Req.rid"}
    assert read == used


# ---- the rest, by name --------------------------------------------------------------------------------------


def test_what_is_read_is_declared():
    """Else declare it in `contract/sglang/`, with its unit, and run `python -m sglang_rpc.doctor --pin`."""
    assert undeclared(MEETS_SGLANG) == []


@pytest.mark.parametrize(
    "read", ["req.surr_offset", "scheduler.last_batch.mamba_mask", "batch.retract_all()", "hasattr(req, 'grammar')"]
)
def test_an_undeclared_read_is_seen(tmp_path, read):
    hook = tmp_path / "hook.py"
    hook.write_text(f"def poll(req, scheduler, batch):\n    return {read}\n")
    assert undeclared([hook]) != []


def test_what_is_declared_is_used():
    members = set(assumptions_in(*MODULES))
    assert unused([assumption for assumption in ALL if assumption.attributes and assumption not in members]) == []


def test_an_unused_declaration_is_seen():
    assert unused([Assumption("sglang.Req", "", ("rid", "priority"))]) == ["priority"]
    assert unused([Assumption("sglang.Req.refresh_all", "")]) == ["refresh_all"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_declared_method_can_be_called_as_it_is_declared(version):
    """By position what is positional, under SGLang's names; the rest by name. Pins say what SGLang's take."""
    pinned = pins.load(version, ROOT / "patches")
    checked = 0
    for protocol in (value for module in MODULES for value in vars(module).values() if isinstance(value, type)):
        for assumption in vars(protocol).get("rpc_assumed", ()):
            if assumption.attributes:
                continue
            scope = {}
            exec(f"def target{pinned.of(assumption.target).signature}: ...", scope)
            method = vars(protocol)[assumption.target.rpartition(".")[2]]
            parameters = [p for p in inspect.signature(method).parameters.values() if p.kind is not p.VAR_KEYWORD]
            names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            by_name = {p.name: p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
            bound = inspect.signature(scope["target"]).bind_partial(*names, **by_name)
            assert all(name == given for name, given in bound.arguments.items()), assumption.target
            checked += 1
    assert checked > 20


# ---- no defaults for what is SGLang's -----------------------------------------------------------------------


def with_default(tree):
    """What `getattr` with a default asks for, but for what RPC itself puts on SGLang's objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ast.unparse(node.args[1])
            if not name.startswith(("rpc", "__")) and name != "_ATTRIBUTE":
                yield name


def test_sglangs_attributes_are_read_without_a_default():
    found = {(str(path.relative_to(PACKAGE)), name) for path in MEETS_SGLANG for name in with_default(parse(path))}
    assert found == set(WITH_DEFAULT)


def test_a_default_is_seen():
    source = "getattr(req, 'rpc', None), getattr(scheduler, 'result_queue', None), getattr(batch, 'reqs')"
    assert list(with_default(ast.parse(source))) == ["result_queue"]


# ---- how they are declared ----------------------------------------------------------------------------------


def test_a_protocol_declares_its_attributes_and_methods():
    @assumed("sglang.a.B", "what it is for", LATENT)
    class Place:
        size: int
        depth: int
        rpc_state: object  # RPC's own

        def step(self):
            """one step"""

    assert Place.rpc_assumed == (
        Assumption("sglang.a.B", "what it is for", ("depth", "size"), LATENT),
        Assumption("sglang.a.B.step", "one step", (), LATENT),
    )


def test_every_assumption_has_a_place_and_a_reason_of_its_own():
    assert len({assumption.target for assumption in ALL}) == len(ALL)
    assert all(assumption.reason and not assumption.reason.endswith(".") for assumption in ALL)


def test_the_page_of_hooks_is_current():
    """`python -m sglang_rpc.doctor --hooks > docs/hooks.md`"""
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert page == doctor.hooks_page()
    for hook in doctor.every_hook():
        assert f"`{hook.target.removeprefix('sglang.')}`" in page


def test_the_table_of_hook_modules_is_complete():
    listed = re.findall(r"^\| `(\w+)` \|", hooks.__doc__, re.MULTILINE)
    assert sorted(listed) == sorted(module.name for module in pkgutil.iter_modules(hooks.__path__))
