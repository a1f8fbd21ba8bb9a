"""The serving benchmark: `python -m eval.bench.serving --help`; the commands of each table are in eval/README.md.

It speaks HTTP to servers that it starts, and imports nothing of sglang_rpc; only `stock_server`, which runs inside a
server's process, uses its stand-in for the kernels that SGLang lacks on a CPU.
"""
