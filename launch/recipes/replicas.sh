#!/usr/bin/env bash
# Replicas of one model, one per GPU, behind a router that sends a prompt where its beginning is cached.
#
#   bash launch/recipes/replicas.sh --model-path MODEL [FLAGS]
#
# FLAGS are those of sglang_rpc.launch_server, the same for each replica. REPLICAS: how many (default: one per GPU that
# nvidia-smi lists; without a GPU name a number). PORT: the router's (default: 30000); replicas take the ports after it.
# PYTHON: the interpreter that has sglang-rpc. SMG: the router's command (default: smg; pip install --no-deps smg==1.13.0).
# All end when one ends, or with Ctrl-C. Logs: replica-N.log in the current folder.
set -euo pipefail

case "${1:---help}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
# shellcheck source=launch/recipes/_together.sh
source "$(dirname "${BASH_SOURCE[0]}")/_together.sh"
replicas="${REPLICAS:-$gpus}"
((replicas > 0)) || {
    echo "replicas: no GPU was found; set REPLICAS=N to run as many on the CPU" >&2
    exit 2
}

urls=()
for ((number = 1; number <= replicas; number++)); do
    device=()
    ((gpus == 0)) || device=(env CUDA_VISIBLE_DEVICES="$(((number - 1) % gpus))")
    "${device[@]}" "${PYTHON:-python3}" -m sglang_rpc.launch_server --host 127.0.0.1 --port "$((port + number))" "$@" \
        >"replica-$number.log" 2>&1 &
    urls+=("http://127.0.0.1:$((port + number))")
done

route --worker-urls "${urls[@]}"
