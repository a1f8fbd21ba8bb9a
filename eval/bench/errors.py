"""The one exception of the benchmark: a sentence for the person who started it."""


class BenchError(Exception):
    """One clear sentence: the setting, what is allowed, what was given, and the way out."""


class ServerDied(BenchError):
    """The server ended, or no longer answers, while a workload ran: the other workloads of this start are lost."""
