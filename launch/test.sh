#!/usr/bin/env bash
# Run the tests: `bash launch/test.sh [pytest arguments]`, e.g. `bash launch/test.sh tests/unit -q`.
# Makes the environment on the first run; SGLANG_RPC_VENV=DIR uses an existing one (launch/_venv.sh).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

case "${1:-}" in -h | --help) sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
use_venv test
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
