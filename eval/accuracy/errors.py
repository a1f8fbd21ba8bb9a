"""The one exception of these commands: a sentence for the person who started one."""


class EvalError(Exception):
    """What was given, what is allowed, and the way out."""
