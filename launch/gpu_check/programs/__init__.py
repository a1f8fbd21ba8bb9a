"""What steps run, each in a process of its own: `python -m launch.gpu_check.programs.NAME`.

A line that begins with `[check]` goes into the summary.
"""


def say(*words: object) -> None:
    print("[check]", *words, flush=True)
