#!/usr/bin/env bash
# One node with several GPUs and DP attention: each GPU attends to requests of its own, and all share the MLPs' experts.
#
#   bash launch/recipes/dp_attention.sh --model-path MODEL [FLAGS]
#
# FLAGS are those of sglang_rpc.launch_server and win over those here. GPUS: how many (default: all that nvidia-smi lists).
# PYTHON: the interpreter that has sglang-rpc. For models whose layers know DP attention, as DeepSeek's and Qwen3's.
set -euo pipefail

case "${1:---help}" in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;; esac
gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"
exec "${PYTHON:-python3}" -m sglang_rpc.launch_server --tp-size "$gpus" --dp-size "$gpus" --enable-dp-attention "$@"
