"""A fleet of replicas behind a router, simulated: `python -m eval.fleet`, see eval/README.md."""
