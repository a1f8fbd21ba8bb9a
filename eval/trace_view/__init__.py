"""What a request forgot: trace files of `--rpc-trace`, read, composed into what each layer held, and shown."""
