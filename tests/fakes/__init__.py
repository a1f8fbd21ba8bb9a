"""Fakes of SGLang's objects: typed, with defaults, and only with what RPC reads, writes or calls.

One module for each of SGLang's concerns: requests, batches, memory, models, the scheduler. A fake is compared by
identity, as SGLang's objects are, and takes `rpc`, which RPC puts there itself. `runtime.py` stands for RPC in one
scheduler, without the start of a server. Where SGLang's own class costs little, a test uses that instead.
"""
