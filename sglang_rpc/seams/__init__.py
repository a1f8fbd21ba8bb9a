"""The only code that imports sglang: SGLang's calls -> runtime's. One file per concern; `table.py` lists every hook."""
