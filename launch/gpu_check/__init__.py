"""Does sglang-rpc work on this host's GPU? `bash launch/gpu_check.sh`; docs/gpu_check.md says how to read it.

    options     the command line
    step        what a step is, and its kinds
    steps       what is asked, as a table
    host        what this host has
    commands    a step's command line there
    check       the run: time boxes, the budget, what is left out and why
    processes   starting a step's command, and ending all that it leaves behind
    digest      the lines of a log that the summary shows
    report      summary.txt
    archive     logs.tgz, within a size

They need Python's standard library alone, so that `--dry-run` works anywhere. `programs/` run as steps, with SGLang.
"""
