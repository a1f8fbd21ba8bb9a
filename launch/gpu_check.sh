#!/usr/bin/env bash
# Does sglang-rpc work on this host's GPU? `bash launch/gpu_check.sh [--help]`; docs/gpu_check.md
#
# Installs nothing. The interpreter that has SGLang: PYTHON, else SGLANG_RPC_VENV, the environment that is active, .venv in
# the project, python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

for candidate in "${PYTHON:-}" "${SGLANG_RPC_VENV:+$SGLANG_RPC_VENV/bin/python}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" \
    "$root/.venv/bin/python" python3; do
    [[ -z "$candidate" ]] || ! command -v "$candidate" >/dev/null || break
done
"$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "gpu_check: $candidate is not Python 3.11 or newer: name one that has SGLang, PYTHON=... bash launch/gpu_check.sh" >&2
    exit 2
}
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$candidate" -P -m launch.gpu_check "$@"
