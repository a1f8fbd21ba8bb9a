"""What the fork server imports, so that no engine has to: SGLang's processes, all of its models, and RPC's hooks."""

import gc

from sglang_rpc.startup import cpu

cpu.prepare()  # as `sglang_rpc.Engine` does, before SGLang decides what it runs on

import sglang.launch_server  # noqa: E402
import sglang.srt.entrypoints.http_server  # noqa: E402
import sglang.srt.managers.detokenizer_manager  # noqa: E402
import sglang.srt.managers.scheduler  # noqa: E402, F401
from sglang.srt.models import registry  # noqa: E402, F401

import sglang_rpc.hooks.install  # noqa: E402
import sglang_rpc.launch_server  # noqa: E402, F401
from tests.engine import spy  # noqa: E402, F401

gc.freeze()  # the children share these pages for as long as no collection writes to them
