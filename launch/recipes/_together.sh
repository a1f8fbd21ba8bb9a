# shellcheck shell=bash disable=SC2034  # sourced: who sources it reads what it sets
# Sourced by recipes that start several programs and a router (smg) on this machine: what they share.
# Sets `gpus`, how many nvidia-smi lists, and `port`, the router's. All that was started ends with the recipe.

command -v "${SMG:-smg}" >/dev/null || {
    echo "$(basename "$0" .sh): there is no ${SMG:-smg}: pip install --no-deps smg==1.13.0, or name one with SMG=..." >&2
    exit 2
}
gpus="$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)"
port="${PORT:-30000}"

# Ends what was started, by its process id; SGLang's servers end their children. A server that is told to end while it warms
# up never does: it is killed after 30 seconds.
end_all() {
    trap - EXIT INT TERM
    local pids second=0
    mapfile -t pids < <(jobs -p)
    ((${#pids[@]} > 0)) || return 0
    kill "${pids[@]}" 2>/dev/null || true
    while ((second++ < 30)) && kill -0 "${pids[@]}" 2>/dev/null; do sleep 1; done
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait
}
trap end_all EXIT INT TERM

# The router waits for servers itself, as long as a large model takes to load. Returns when any program ends.
route() {
    "${SMG:-smg}" launch --host 127.0.0.1 --port "$port" --policy cache_aware --worker-startup-timeout-secs 1800 "$@" &
    wait -n
}
