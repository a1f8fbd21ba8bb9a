"""What users see: names, the entry point, the command line. Every command line is parsed in one other process."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from importlib.metadata import entry_points, version
from pathlib import Path
from types import SimpleNamespace

import pytest

import sglang_rpc
from sglang_rpc.config import CONFIG_ENV, SETTINGS, RequestOptions, RPCConfig
from sglang_rpc.hooks.reporting import SERVER_INFO_FIELDS, add_server_info
from sglang_rpc.policy.resolve import NAMES
from sglang_rpc.runtime.receipt import RECEIPT_FIELDS, make_receipt
from sglang_rpc.runtime.totals import Counters, Steps, Totals

FLAGS = [f"--rpc-{field.name.replace('_', '-')}" for field in fields(RPCConfig)]
MODEL = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64,
         "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 128,
         "max_position_embeddings": 4096, "torch_dtype": "float32"}  # fmt: skip

# What is asked -> what comes of it. {folder} is a folder with the files below.
FILES = {
    "rpc.json": '{"interval": 512, "window": 16, "pooling": "max"}',
    "wrong.json": '{"intervall": 512}',
    "server.yaml": 'rpc-interval: 128\nrpc-ratio: 2\nrpc-think-end: "</t>"\nmax-total-tokens: 2048\n',
    "object.yaml": "rpc-config: '{\"interval\": 96}'\n",
    "pressed.json": '{"when": "pressure", "pressure": "ratio", "max_ratio": 6, "host_backup_gb": 9}',
    "pressed.yaml": "rpc-when: pressure\nrpc-low-watermark: 0.5\nrpc-host-backup-gb: 2\n",
    "off.yaml": "disable-rpc: true\nrpc-interval: 128\n",
}
PARSED = {
    "": {},
    "--rpc-interval 64": {"interval": 64},
    "--rpc-interval=64 --rpc-window 8 --rpc-ratio 2.5": {"interval": 64, "window": 8, "ratio": 2.5},
    "--rpc-kernel-size 5 --rpc-pooling max --rpc-aggregation group": {
        "kernel_size": 5, "pooling": "max", "aggregation": "group"},
    "--rpc-selector paper --rpc-scope all --rpc-query-slots 9": {"selector": "paper", "scope": "all", "query_slots": 9},
    "--rpc-think-start <think> --rpc-think-end </think>": {"think_start": "<think>", "think_end": "</think>"},
    "--rpc-think-start 151667 --rpc-think-end 0": {"think_start": 151667, "think_end": 0},
    '--rpc-config {"interval":256}': {"interval": 256},
    "--rpc-config {folder}/rpc.json": {"interval": 512, "window": 16, "pooling": "max"},
    "--rpc-window 4 --rpc-config {folder}/rpc.json": {"interval": 512, "window": 4, "pooling": "max"},
    "--config {folder}/server.yaml": {"interval": 128, "ratio": 2.0, "think_end": "</t>"},
    "--config {folder}/server.yaml --rpc-interval 32": {"interval": 32, "ratio": 2.0, "think_end": "</t>"},
    "--config {folder}/object.yaml": {"interval": 96},
    "--rpc-when pressure --rpc-high-watermark 0.9 --rpc-low-watermark 0.25": {
        "when": "pressure", "high_watermark": 0.9, "low_watermark": 0.25},
    "--rpc-policy lightthinker --rpc-gist-tokens 91 92 --rpc-gist-resume 9": {
        "policy": "lightthinker", "gist_tokens": [91, 92], "gist_resume": 9},
    "--rpc-pressure ratio --rpc-max-ratio 12": {"pressure": "ratio", "max_ratio": 12.0},
    "--rpc-pressure off --rpc-host-backup-gb 0": {"pressure": "off", "host_backup_gb": 0.0},
    "--rpc-trace some/folder": {"trace": "some/folder"},
    "--rpc-host-backup-gb 1.5 --rpc-config {folder}/pressed.json": {
        "when": "pressure", "pressure": "ratio", "max_ratio": 6, "host_backup_gb": 1.5},
    "--config {folder}/pressed.yaml": {"when": "pressure", "low_watermark": 0.5, "host_backup_gb": 2.0},
    "--disable-rpc": None,
    "--disable-rpc --rpc-interval 64": None,
    "--config {folder}/off.yaml": None,
}  # fmt: skip
FROM_ENV = {
    ("{}", ""): {},
    ('{"interval": 700, "window": 9}', ""): {"interval": 700, "window": 9},
    ('{"interval": 700, "window": 9}', "--rpc-window 3"): {"interval": 700, "window": 3},
    ('{"interval": 700, "window": 9}', "--rpc-config {folder}/rpc.json"): {
        "interval": 512, "window": 16, "pooling": "max"},
    ('{"interval": 700, "scope": "all"}', '--rpc-config {"interval":600} --rpc-ratio 2'): {
        "interval": 600, "scope": "all", "ratio": 2.0},
    ('{"interval": 700}', "--disable-rpc"): None,
}  # fmt: skip
WRONG = {
    "--rpc-interval 0": "sglang-rpc: --rpc-interval must be an integer from 2 to 16777216, got 0",
    "--rpc-window -1": "sglang-rpc: --rpc-window must be an integer from 1 to 16777216, got -1",
    "--rpc-ratio 1": "sglang-rpc: --rpc-ratio must be a number above 1 and at most the interval (4096), so that a "
    "compression keeps something and drops something, got 1.0",
    "--rpc-ratio nan": "sglang-rpc: --rpc-ratio must be a number above 1 and at most the interval (4096), so that a "
    "compression keeps something and drops something, got nan",
    "--rpc-kernel-size 4": "sglang-rpc: --rpc-kernel-size must be odd so that pooling stays centred, got 4",
    "--rpc-think-end=": "sglang-rpc: --rpc-think-end must be a non-empty text or a token id, got ''",
    "--rpc-trace=": "sglang-rpc: --rpc-trace must be the path of a folder, got ''",
    "--rpc-query-slots 0": "sglang-rpc: --rpc-query-slots must be an integer from 1 to 16777216, got 0",
    "--rpc-high-watermark 1.5": "sglang-rpc: --rpc-high-watermark must be a number from 0 to 1, got 1.5",
    "--rpc-low-watermark nan": "sglang-rpc: --rpc-low-watermark must be a number from 0 to 1, got nan",
    "--rpc-low-watermark 0.9": "sglang-rpc: --rpc-low-watermark must not be above the high_watermark (0.8), got 0.9",
    "--rpc-ratio 8 --rpc-max-ratio 4": "sglang-rpc: --rpc-max-ratio must be a number from 8 to ",
    "--rpc-host-backup-gb -1": "sglang-rpc: --rpc-host-backup-gb must be a number from 0 to ",
    "--rpc-config {folder}/wrong.json": "sglang-rpc: --rpc-config: unknown RPC setting 'intervall'; the settings",
    "--rpc-config /no/such.json": "sglang-rpc: --rpc-config: the RPC configuration must be a JSON object or the path",
    '--rpc-config {"gist_tokens":"<o>"}': "sglang-rpc: --rpc-config: gist_tokens must be a list of non-empty texts or",
    '--rpc-config {"interval":': "sglang-rpc: --rpc-config: the RPC configuration '{\"interval\":' is not valid",
}
REFUSED_BY_ARGPARSE = {
    "--rpc-interval 1.5": "argument --rpc-interval: invalid int value: '1.5'",
    "--rpc-ratio four": "argument --rpc-ratio: invalid float value: 'four'",
    "--rpc-pooling min": "argument --rpc-pooling: invalid choice: 'min'",
    "--rpc-when never": "argument --rpc-when: invalid choice: 'never'",
    "--rpc-pressure on": "argument --rpc-pressure: invalid choice: 'on'",
    "--rpc-high-watermark 80%": "argument --rpc-high-watermark: invalid float value: '80%'",
    "--rpc-max-ratio x": "argument --rpc-max-ratio: invalid float value: 'x'",
    "--rpc-host-backup-gb 4G": "argument --rpc-host-backup-gb: invalid float value: '4G'",
    "--rpc-selector": "argument --rpc-selector: expected one argument",
    "--rpc-intervall 64": "unrecognized arguments: --rpc-intervall 64",
}


def cases() -> list[tuple[str, str | None, bool]]:
    """(arguments, environment, through main)"""
    return [
        *((line, None, False) for line in PARSED),
        *((line, env, False) for env, line in FROM_ENV),
        *((line, None, True) for line in [*WRONG, *REFUSED_BY_ARGPARSE]),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("surface")
    for name, content in FILES.items():
        (path / name).write_text(content)
    (path / "config.json").write_text(json.dumps(MODEL))
    return path


@pytest.fixture(scope="module")
def answers(folder) -> tuple[dict[tuple[str, str | None, bool], dict], str]:
    """What becomes of every command line, and the text of --help: two processes side by side, SGLang loads slowly."""
    server = ["--model-path", str(folder), "--skip-tokenizer-init", "--device", "cpu"]
    given = [
        {"argv": [*server, *line.replace("{folder}", str(folder)).split()], "env": env, "main": main}
        for line, env, main in cases()
    ]
    commands = ([str(Path(__file__).with_name("surface_driver.py"))], ["-m", "sglang_rpc.launch_server", "--help"])
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean())
    driver, printer = (subprocess.Popen([sys.executable, *command], **pipes) for command in commands)
    try:
        parsed, parsed_errors = driver.communicate(json.dumps(given), timeout=180)
        shown, shown_errors = printer.communicate(timeout=180)
    finally:
        driver.kill()
        printer.kill()
    found = [json.loads(line[7:]) for line in parsed.splitlines() if line.startswith("RESULT ")]
    assert len(found) == len(given), parsed_errors[-2000:]
    assert printer.returncode == 0, shown_errors[-2000:]
    return dict(zip(cases(), found, strict=True)), shown


@pytest.fixture
def outcomes(answers) -> dict[tuple[str, str | None, bool], dict]:
    return answers[0]


def clean() -> dict[str, str]:
    """The environment, without what would change the answers."""
    kept = {name: value for name, value in os.environ.items() if name not in (CONFIG_ENV, "SGLANG_PLUGINS")}
    return {**kept, "COLUMNS": "120", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


# --- names ------------------------------------------------------------------------------------------------------


def test_exported_names():
    assert sglang_rpc.__all__ == [
        "ConfigError", "Engine", "IncompatibleSGLangError", "RPCConfig", "RPCError", "UnsupportedError", "__version__",
    ]  # fmt: skip
    for name in set(sglang_rpc.__all__) - {"Engine"}:  # Engine loads SGLang
        assert hasattr(sglang_rpc, name)
    with pytest.raises(AttributeError, match="no attribute 'Engines'"):
        sglang_rpc.Engines  # noqa: B018


def test_errors_are_caught_as_one_kind_and_as_value_errors():
    for error in (sglang_rpc.ConfigError, sglang_rpc.UnsupportedError):
        assert issubclass(error, sglang_rpc.RPCError)
        assert issubclass(error, ValueError)
    assert issubclass(sglang_rpc.IncompatibleSGLangError, sglang_rpc.RPCError)


FAMILIES = {
    sglang_rpc.RPCError: "error",
    sglang_rpc.ConfigError: "config",
    sglang_rpc.UnsupportedError: "unsupported",
    sglang_rpc.IncompatibleSGLangError: "incompatible",
}


@pytest.mark.parametrize(("kind", "family"), FAMILIES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_every_error_has_a_code_that_ends_its_message(kind, family):
    assert str(kind("a sentence")) == f"a sentence [{family}]"
    error = kind("it does not fit; use another", f"{family}.some_name")
    assert str(error) == f"it does not fit; use another [{family}.some_name]"
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(same), same.sentence, same.code) == (kind, error.sentence, error.code)
        assert str(same) == str(error)
    named = error.prefixed("--rpc-config: ")
    assert type(named) is kind
    assert str(named) == f"--rpc-config: {error}"


def test_the_version_is_the_installed_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", sglang_rpc.__version__)
    assert version("sglang-rpc") == sglang_rpc.__version__


def test_the_plugin_is_registered_with_sglang():
    registered = {(e.name, e.value) for e in entry_points(group="sglang.srt.plugins")}
    assert ("rpc", "sglang_rpc.startup.plugin:load") in registered
    (plugin,) = entry_points(group="sglang.srt.plugins", name="rpc")
    assert callable(plugin.load())


# --- what a server tells ---------------------------------------------------------------------------------------


OF_SPECULATION = ("cuts", "tokens_per_step", "tokens_per_step_compressed")


def test_steps_are_those_before_the_first_compression_and_those_after():
    totals = Totals()
    totals.stepped(Steps(20, 50))
    totals.stepped(Steps(24, 60))
    totals.compressions = 1
    totals.stepped(Steps(34, 81))
    totals.cut(2)
    receipt = make_receipt(RequestOptions(True, 64, 8, 4, "all"), totals, 80, 50, "", speculates=True)
    assert {name: receipt[name] for name in OF_SPECULATION} == dict(zip(OF_SPECULATION, (2, 2.5, 2.1), strict=True))
    assert (totals.before, totals.after) == (Steps(24, 60), Steps(10, 21))


def test_a_receipt_has_the_fields_of_the_reference():
    options, totals = RequestOptions(True, 64, 8, 4, "all", reuse="continue"), Totals()
    assert list(make_receipt(options, totals, 9, 9, "why", "why not", speculates=True)) == list(RECEIPT_FIELDS)
    totals.compressions = 1
    without = [name for name in RECEIPT_FIELDS if name not in ("reason", *OF_SPECULATION)]
    assert list(make_receipt(options, totals, 90, 50, "why", "why not")) == without
    totals.reused = 1
    without.remove("not_reused")
    assert list(make_receipt(options, totals, 90, 50, "why", "")) == without
    totals.reused, totals.continued = 0, 1
    assert list(make_receipt(options, totals, 90, 50, "why", "")) == without
    without.remove("continued")
    assert list(make_receipt(replace(options, reuse="share"), totals, 90, 50, "why", "")) == without


def test_a_receipt_without_reuse_does_not_speak_of_it():
    options, totals = RequestOptions(True, 64, 8, 4, "all"), Totals()
    fields = list(make_receipt(options, totals, 9, 9, "why"))
    others = {name for name in RECEIPT_FIELDS if "reuse" in name} | {"continued", *OF_SPECULATION}
    assert fields == [name for name in RECEIPT_FIELDS if name not in others]
    assert fields[-1] == "reason"


def test_the_server_info_has_the_fields_of_the_reference():
    runtime = SimpleNamespace(
        config=RPCConfig(),
        scope_in_effect="all",
        compressor=SimpleNamespace(scoring="reference", counters=Counters(), recorder=SimpleNamespace(waiting=0)),
        query_slots=SimpleNamespace(needed=64),
        ring=SimpleNamespace(slots=64, in_use=0, nbytes=4096),
        backups=SimpleNamespace(used=0, limit=0),
        watermarks=SimpleNamespace(under_pressure=False, crossings=0),
        aliases=[],
    )
    result = SimpleNamespace(internal_state={})
    add_server_info(result, SimpleNamespace(scheduler=SimpleNamespace(rpc=runtime)), None)
    assert list(result.internal_state["rpc"]) == list(SERVER_INFO_FIELDS)


# --- the command line -------------------------------------------------------------------------------------------


def test_help_lists_every_flag_in_a_group_of_its_own(answers):
    shown = answers[1]
    assert "--model-path" in shown
    # A group's heading stands at the margin; what belongs to it is indented.
    _, heading, rest = shown.partition("\nReasoning Path Compression:\n")
    assert heading, shown[-3000:]
    group = re.split(r"\n\S", rest)[0]
    listed = re.findall(r"^  (--[a-z-]+)", group, re.MULTILINE)
    assert sorted(listed) == sorted([*FLAGS, "--rpc-config", "--disable-rpc"])
    told = " ".join(group.split())
    for field in fields(RPCConfig):
        setting = SETTINGS[field.name]
        assert (field.default is None) == bool(setting.unset), field.name
        assert setting.help in told, field.name
        assert f"(default: {setting.unset or field.default})" in told, field.name
    assert f": {', '.join(NAMES)} (default: rpc)" in told  # of policies, which are known by name only


@pytest.mark.parametrize("line", PARSED, ids=lambda line: line or "nothing")
def test_flags_become_the_configuration(outcomes, line):
    check(outcomes[line, None, False], PARSED[line])


@pytest.mark.parametrize(("env", "line"), FROM_ENV)
def test_flags_lie_over_the_environment(outcomes, env, line):
    outcome = outcomes[line, env, False]
    check(outcome, FROM_ENV[env, line])
    assert outcome["env_after"] is None  # the configuration travels with the arguments; a child must not read it again


def check(outcome: dict, wanted: dict | None) -> None:
    assert "config" in outcome, outcome
    assert outcome["config"] == (None if wanted is None else json.loads(RPCConfig(**wanted).to_json()))


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_ends_in_one_sentence(outcomes, line):
    outcome = outcomes[line, None, True]
    assert "exit" in outcome, outcome
    assert outcome["exit"].startswith(WRONG[line])
    assert "\n" not in outcome["exit"]
    (code,) = re.findall(r" \[config\.([a-z_]+)\]", outcome["exit"])
    assert outcome["exit"].endswith(f" [config.{code}]")
    setting = re.match(r"sglang-rpc: (?:--rpc-config: )?(?:--rpc-)?([a-z_-]+) must ", outcome["exit"])
    assert code == setting[1].replace("-", "_") if setting else code in ("unknown", "source")
    assert "Traceback" not in outcome["stderr"]
    assert outcome["served"] == 0


@pytest.mark.parametrize("line", REFUSED_BY_ARGPARSE)
def test_what_is_no_value_at_all_is_refused_by_the_parser(outcomes, line):
    outcome = outcomes[line, None, True]
    assert outcome.get("exit") == 2, outcome
    assert REFUSED_BY_ARGPARSE[line] in outcome["stderr"].splitlines()[-1]
    assert outcome["served"] == 0
