"""The servers of a measurement: one a policy, full KV with the first of them, and an arm's rows on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.accuracy.errors import EvalError
from eval.accuracy.run import server_settings, sha_of_model
from eval.accuracy.store import Store
from eval.bench import machine, server
from eval.bench.errors import BenchError
from eval.compare import table
from eval.compare.arms import FULL, Arm, label, server_flags
from eval.fidelity import forced, serving
from eval.fidelity.rows import Row, row
from eval.fidelity.serving import Files
from eval.fidelity.texts import Text
from sglang_rpc.policy.resolve import accumulates

MODULE = "sglang_rpc.launch_server"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Measuring:
    model_path: str
    server_flags: list[str]
    texts: list[Text]
    out: Path
    start_seconds: float = 600  #: that a server may take to start

    @property
    def files(self) -> Files:
        return Files(self.out)

    def measure(self, every: Sequence[Arm]) -> list[str]:
        """Every arm that is not there yet; `every` begins with full. Returns a sentence a policy that failed.

        Raises EvalError, BenchError if full KV cannot be measured, without which nothing can.
        """
        failed = []
        policies = list(dict.fromkeys(arm.policy for arm in every[1:]))
        for number, policy in enumerate(policies):
            mine = [arm for arm in every if arm.policy == policy or (number == 0 and arm.policy == FULL)]
            try:
                self._serve(policy, [arm for arm in mine if not self._is_there(arm)])
            except (EvalError, BenchError) as error:
                if not self._is_there(every[0]):
                    raise
                failed.append(f"{policy}: {error}")
        return failed

    def _is_there(self, arm: Arm) -> bool:
        there = {sample["problem"] for sample in table.samples_of(arm, self.out)}
        return {text.name for text in self.texts} <= there

    def _serve(self, policy: str, left: Sequence[Arm]) -> None:
        """One server; none if nothing is left to be measured."""
        if not left:
            return
        self._check_full(left)
        device = machine.default_device()
        flags = [
            *("--model-path", self.model_path, "--rpc-policy", policy, "--rpc-query-slots", str(len(self.texts))),
            *(*server_flags(left), *serving.FLAGS),
        ]
        if accumulates(policy) and device != "cpu":
            flags += ["--cuda-graph-backend-decode", "disabled"]  # it reads every step's attention
        env = machine.server_environment(machine.default_threads(device))
        log = self.out / "logs" / f"{label(policy)}.log"
        with server.running(MODULE, [*flags, *self.server_flags], log, env, self.start_seconds) as running:
            for arm in left:
                print(f"{arm.name}: {len(self.texts)} texts", flush=True)
                running.flush()  # every arm begins with an empty prefix cache
                serving.measure(running, arm, self.texts, self.files)
                self._keep(running, arm)

    def _check_full(self, left: Sequence[Arm]) -> None:
        """Raises EvalError if full KV was measured, and what these arms need of it is no longer there."""
        if any(arm.policy == FULL for arm in left):
            return
        for text in self.texts:
            for path in (self.files.logits(text), self.files.tokens(_full(left[0]), text)):
                if not path.exists():
                    raise EvalError(
                        f"{path} is gone, with which {left[0].name} would be compared; choose another --out, "
                        "where full KV is measured again"
                    )

    def _keep(self, running: server.Server, arm: Arm) -> None:
        """Write the arm's file: under which conditions, then a row a text."""
        store = Store(self.out / f"{arm.name}.jsonl", self._config(running, arm), machine.conditions())
        try:
            for text in self.texts:
                if (text.name, 0) not in store.done:
                    store.add({"problem": text.name, "sample": 0, **asdict(self._row(arm, text))})
        finally:
            store.close()

    def _row(self, arm: Arm, text: Text) -> Row:
        ours, theirs = (forced.read(self.files.tokens(each, text)) for each in (arm, _full(arm)))
        return row(arm, text.name, ours, theirs)

    def _config(self, running: server.Server, arm: Arm) -> dict[str, Any]:
        settings = server_settings(running.url)
        for name in ("trace", *arm.rpc):
            settings["rpc"].pop(name, None)  # the request's own, or without a say
        ids = json.dumps([[text.prompt, text.tokens] for text in self.texts])
        return {
            "texts": {text.name: {"sha256": text.sha256} for text in self.texts},
            "prompt_tokens": len(self.texts[0].prompt),
            "tokens": len(self.texts[0].tokens),
            "rpc": arm.rpc,
            "data_sha256": hashlib.sha256(ids.encode()).hexdigest(),
            "model_sha": sha_of_model(settings.pop("model_path")),
            "grader_sha": machine.sha_of(sorted(HERE.glob("*.py"))),
            "server": settings,
        }


def _full(arm: Arm) -> Arm:
    return Arm(FULL, arm.interval, arm.window, arm.ratio)
