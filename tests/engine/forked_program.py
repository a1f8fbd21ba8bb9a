"""What test_forked.py runs in the place of a server: says what a process that it starts goes by."""

import multiprocessing
import os

import psutil


def look_around() -> None:
    from sglang.srt.managers import scheduler

    parent = psutil.Process().parent().pid
    print("child", parent == multiprocessing.parent_process().pid, scheduler.TEST_RETRACT_INTERVAL, flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn", force=True)  # as SGLang does
    child = multiprocessing.Process(target=look_around)
    child.start()
    child.join()
    print("program", os.getpid() == os.getsid(0), os.environ.get("SGLANG_RPC_TEST_MARK"), flush=True)
    raise SystemExit(3)
