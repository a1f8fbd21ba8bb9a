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
command -v "${SMG:-smg}" >/dev/null || {
    echo "replicas: there is no ${SMG:-smg}: pip install --no-deps smg==1.13.0, or name one with SMG=..." >&2
    exit 2
}
gpus="$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)"
replicas="${REPLICAS:-$gpus}"
port="${PORT:-30000}"
((replicas > 0)) || {
    echo "replicas: no GPU was found; set REPLICAS=N to run as many on the CPU" >&2
    exit 2
}

# Ends what was started, by its process id, and the children of each.
end_all() {
    trap - EXIT INT TERM
    local pids
    mapfile -t pids < <(jobs -p)
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    wait
}
trap end_all EXIT INT TERM

urls=()
for ((number = 1; number <= replicas; number++)); do
    device=()
    ((gpus == 0)) || device=(env CUDA_VISIBLE_DEVICES="$(((number - 1) % gpus))")
    "${device[@]}" "${PYTHON:-python3}" -m sglang_rpc.launch_server --host 127.0.0.1 --port "$((port + number))" "$@" \
        >"replica-$number.log" 2>&1 &
    urls+=("http://127.0.0.1:$((port + number))")
done

# The router waits for them itself, as long as a large model takes to load.
"${SMG:-smg}" launch --host 127.0.0.1 --port "$port" --policy cache_aware --worker-startup-timeout-secs 1800 \
    --worker-urls "${urls[@]}" &
wait -n
