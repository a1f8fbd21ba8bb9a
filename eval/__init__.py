"""What sglang-rpc gives, measured. Not part of the installed package; run from the root of a checkout."""
