#!/usr/bin/env bash
# Run the tests on another supported SGLang: `bash launch/test_other_sglang.sh VERSION [pytest arguments]`, e.g.
# `bash launch/test_other_sglang.sh 0.5.22`. Without pytest arguments: the unit tests, and the authors' whole runs.
#
# On the first run that SGLang is put into .cache/sglang-VERSION, without what it depends on: PyTorch and the kernels stay
# those of the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

[[ $# -gt 0 ]] || die "usage: bash launch/test_other_sglang.sh VERSION [pytest arguments]"
version="$1"
shift

use_venv test
cd "$ROOT"
overlay="$("$PYTHON" -m tests.overlay "$version")" || die "SGLang $version could not be installed: see pip's message above."
export PYTHONPATH="$overlay${PYTHONPATH:+:$PYTHONPATH}"
"$PYTHON" -m sglang_rpc.doctor
[[ $# -gt 0 ]] || set -- tests/unit tests/engine/test_goldens.py
exec "$PYTHON" -m pytest "$@"
