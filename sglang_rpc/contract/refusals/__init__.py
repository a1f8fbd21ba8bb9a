"""What RPC refuses, as tables: rows of the server's arguments, of the model and pools, and of single requests.

Each row says when it applies, why RPC cannot work there, and the way out; its sentence is what a user reads.
SGLang is imported inside functions only, so that the tables can be read without it: docs/limits.md is made from them.
"""
