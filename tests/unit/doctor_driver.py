"""Runs the doctor under several circumstances in one process with a real SGLang, which takes long to import, and prints
what it said as JSON: {circumstance: [exit status, standard output]}. Arguments: a folder to write pins in."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from sglang_rpc import doctor
from sglang_rpc.contract import pins

SCRATCH = Path(sys.argv[1])
said: dict[str, list] = {}


def run(name, *arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = doctor.main(arguments)
    said[name] = [status, out.getvalue()]


@contextlib.contextmanager
def attribute(owner, name, value=None):
    """Another attribute for a while; None: none at all."""
    original = owner.__dict__[name]
    delattr(owner, name)
    if value is not None:
        setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def variable(name, value):
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def run_model(name, **config):
    """What is said of a model with this configuration, on either stream; without one: of a folder that is not there."""
    folder = SCRATCH / name
    if config:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        run(name, "--model-path", str(folder))
    said[name][1] += err.getvalue()


run("as it is")
run("as json", "--json")
run("pin", "--pin", "--pins", str(SCRATCH))
run_model("a dense model", architectures=["LlamaForCausalLM"], model_type="llama")
run_model("a draft model", architectures=["LlamaForCausalLMEagle"], model_type="llama")
run_model("a model with chunks", architectures=["Llama4ForCausalLM"], model_type="llama4_text")
run_model("a model that may have windows", architectures=["Olmo2ForCausalLM"], model_type="olmo2")
run_model("a model of another package", architectures=["SomeForCausalLM"], model_type="llama")
run_model("no model")

from sglang.srt.managers.schedule_batch import Req  # noqa: E402
from sglang.srt.managers.scheduler import Scheduler  # noqa: E402

with attribute(Req, "reset_for_retract"):
    run("renamed")
with attribute(Scheduler, "get_next_batch_to_run", lambda self, batch: None):
    run("other arguments")
with attribute(Scheduler, "get_next_batch_to_run", lambda self, running_batch, last_batch: None):
    run("other body")
with attribute(Req, "set_finish_with_abort"):
    run("assumed renamed")

# The same code under the name of another version.
version = pins.load("0", SCRATCH).version
older = SCRATCH / "older"
older.mkdir()
text = pins.path_of(version, SCRATCH).read_text()
pins.path_of("0.4.1", older).write_text(text.replace(f'"sglang": "{version}"', '"sglang": "0.4.1"'))
run("unpinned version", "--pins", str(older))
with variable("SGLANG_RPC_ALLOW_VERSION", "1"):
    run("unpinned version allowed", "--pins", str(older))
with variable("SGLANG_PLUGINS", "somebody_else"):
    run("not on the list")

# What install() really puts on.
from sglang.srt.model_executor.forward_batch_info import ForwardBatch  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: E402
from sglang.srt.server_args import ServerArgs  # noqa: E402

from sglang_rpc.contract.targets import LATER, hooks_in  # noqa: E402
from sglang_rpc.hooks.install import install, installed  # noqa: E402
from sglang_rpc.startup import flags  # noqa: E402
from sglang_rpc.startup.process import switch_on  # noqa: E402

calls = []
HookRegistry.register(
    "sglang.srt.managers.scheduler.Scheduler.get_next_batch_to_run",
    lambda *_args, **_kwargs: calls.append("theirs"),
    HookType.BEFORE,
)
HookRegistry.apply_hooks()
install(hooks_in(flags))
switch_on()
run("hooked")
hook = ServerArgs.check_server_args
switch_on()
stack, function = [], Scheduler.get_next_batch_to_run
while function is not None:
    stack.append(function.__code__.co_filename)
    function = getattr(function, "__wrapped__", None)
said["install"] = [
    0,
    {
        "installed": installed() == {hook for hook in doctor.every_hook() if hook.when not in LATER},
        "once": ServerArgs.check_server_args is hook,
        "bindings": [
            type(ForwardBatch.__dict__["init_new"]).__name__,
            type(ServerArgs.__dict__["add_cli_args"]).__name__,
            type(Req.__dict__["reset_for_retract"]).__name__,
        ],
        "hooks_on_a_shared_target": sum("hook_registry" in file for file in stack),
    },
]
print(json.dumps(said))
