"""What RPC reads, calls and writes of SGLang's objects, as Protocols; one concern a file.

Each Protocol names its class in SGLang and what RPC needs of it; the pins are taken from these declarations. What RPC
puts on SGLang's objects itself (`rpc`, `rpc_ring`, ...) is declared here too, and is not pinned.
"""
