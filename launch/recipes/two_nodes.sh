#!/usr/bin/env bash
# Two nodes, a pipeline stage on each, and tensor parallelism inside a node: only activations cross the network.
#
#   HEAD=10.0.0.1:5000 RANK=0 bash launch/recipes/two_nodes.sh --model-path MODEL [FLAGS]     # on the first node
#   HEAD=10.0.0.1:5000 RANK=1 bash launch/recipes/two_nodes.sh --model-path MODEL [FLAGS]     # on the second, same FLAGS
#
# HEAD: the first node's address and a free port there. The first node serves HTTP. GPUS: how many per node (default: all
# that nvidia-smi lists). FLAGS are those of sglang_rpc.launch_server and win over those here. PYTHON: the interpreter
# that has sglang-rpc. Nodes whose RPC settings differ end with a sentence.
set -euo pipefail

case "${1:---help}" in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
[[ -n "${HEAD:-}" && "${RANK:-}" =~ ^[01]$ ]] || {
    echo "two_nodes: set HEAD=ADDRESS:PORT and RANK=0 or RANK=1; --help says more" >&2
    exit 2
}
gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
exec "${PYTHON:-python3}" -m sglang_rpc.launch_server --nnodes 2 --node-rank "$RANK" --dist-init-addr "$HEAD" \
    --tp-size "$gpus" --pp-size 2 "$@"
