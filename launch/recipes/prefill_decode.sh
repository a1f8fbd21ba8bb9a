#!/usr/bin/env bash
# Prefill and decode on servers of their own, after a gateway: prompts are computed on one half of the GPUs, and thoughts
# generated and compressed on the other.
#
#   bash launch/recipes/prefill_decode.sh --model-path MODEL [FLAGS]
#
# FLAGS are those of sglang_rpc.launch_server, the same for both servers. PORT: the gateway's (default: 30000); the servers
# take the two ports after it. PYTHON: the interpreter that has sglang-rpc. SMG: the gateway's command (default: smg;
# pip install --no-deps smg==1.13.0). BOOTSTRAP: the port where the servers find each other (default: 8998). Without a GPU
# both run on the CPU and send KV over TCP, which takes mooncake-transfer-engine-non-cuda and libibverbs1. Logs: prefill.log
# and decode.log in the current folder. All end when one ends, or with Ctrl-C.
set -euo pipefail

case "${1:---help}" in -h | --help) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
# shellcheck source=launch/recipes/_together.sh
source "$(dirname "${BASH_SOURCE[0]}")/_together.sh"
((gpus != 1)) || {
    echo "prefill_decode: it takes two GPUs or more, and one was found" >&2
    exit 2
}
bootstrap="${BOOTSTRAP:-8998}"

# $1: prefill or decode; $2: port; $3, $4: its first GPU and how many it has; the rest: flags.
start() {
    local mode="$1" own="$2" first="$3" count="$4" device=()
    shift 4
    ((count == 0)) || device=(env CUDA_VISIBLE_DEVICES="$(seq -s, "$first" "$((first + count - 1))")")
    ((count == 0)) || set -- --tp-size "$count" "$@"
    "${device[@]}" "${PYTHON:-python3}" -m sglang_rpc.launch_server --disaggregation-mode "$mode" --host 127.0.0.1 \
        --disaggregation-bootstrap-port "$bootstrap" --port "$own" "$@" >"$mode.log" 2>&1 &
}

half="$((gpus / 2))"
# On a CPU SGLang's prefill server cannot overlap: it records an event on a stream that is not there.
((gpus > 0)) || set -- --device cpu --disable-overlap-schedule --disaggregation-transfer-backend mooncake_tcp "$@"
start prefill "$((port + 1))" 0 "$half" "$@"
start decode "$((port + 2))" "$half" "$half" "$@"
route --pd-disaggregation --prefill "http://127.0.0.1:$((port + 1))" "$bootstrap" --decode "http://127.0.0.1:$((port + 2))"
