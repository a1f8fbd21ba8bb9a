#!/usr/bin/env bash
# See RPC work, or serve a model with it.
#
#   bash launch/quickstart.sh                              demo: a small reasoner solves eight problems, holding less KV
#   bash launch/quickstart.sh --model-path MODEL [FLAGS]   serves MODEL in the foreground with RPC on; FLAGS are those
#                                                          of sglang_rpc.launch_server, which are SGLang's and --rpc-*
#
# Works with and without a GPU. Makes the environment on the first run; SGLANG_RPC_VENV=DIR uses an existing one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

mode=demo
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit ;;
        --model-path | --model-path=* | --model | --model=* | --config | --config=*) mode=serve ;;
    esac
done
if [[ "$mode" == demo && $# -gt 0 ]]; then
    usage >&2
    die "Without --model-path this takes no flags, got: $*"
fi

use_venv ""
if [[ "$mode" == serve ]]; then
    exec "$PYTHON" -m sglang_rpc.launch_server "$@"
fi
exec "$PYTHON" "$ROOT/launch/quickstart.py" "$ROOT/eval/reasoner/model"
