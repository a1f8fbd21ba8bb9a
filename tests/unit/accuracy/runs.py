"""A server for a run of `python -m eval.accuracy`, and the run's command."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from eval.accuracy import __main__ as command


class Server(ThreadingHTTPServer):
    """What of SGLang's server a run asks for; `say` gives (thoughts, answer, finish) for a message."""

    daemon_threads = False  # closing waits for all, so that none prints into a later test's output

    def __init__(self, say=lambda message: (None, r"\boxed{4}", "stop"), seconds=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.seconds = say, seconds
        self.asked: list[dict] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "o"}]}
        info = {"model_path": "some/model", "version": "0", "internal_states": [{}]}
        self.answer(models if self.path.endswith("/models") else info)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        time.sleep(self.server.seconds)
        thoughts, said, finish = self.server.say(body["messages"][0]["content"])
        message = {"role": "assistant", "content": said, "reasoning_content": thoughts}
        choice = {"index": 0, "message": message, "finish_reason": finish, "meta_info": {"id": "x"}}
        usage = {"prompt_tokens": 1, "completion_tokens": 10, "total_tokens": 11}
        self.answer(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def written(path: Path, *values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def run(server, tmp_path, *flags) -> int:
    given = ["--base-url", server.url, "--out", tmp_path / "out.jsonl", "--quiet", "--concurrency", 1, *flags]
    return command.main([str(each) for each in given])
