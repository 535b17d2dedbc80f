"""A judge for tests: it serves the Chat Completions protocol on a loopback port.

A behaviour is a function from one `Call` to one `Response`. The server knows nothing of MT-Bench.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request. `repeat` is the number of earlier requests with the same messages."""

    number: int
    repeat: int
    path: str
    authorization: str
    body: dict[str, Any]

    @property
    def messages(self) -> str:
        return json.dumps(self.body["messages"])


@dataclass(frozen=True)
class Response:
    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


Behaviour = Callable[[Call], Response]


@dataclass
class JudgeServer:
    """A running server, its requests, and the largest number of requests at once."""

    url: str
    behaviour: Behaviour
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0


@contextlib.contextmanager
def judge_server(behaviour: Behaviour) -> Iterator[JudgeServer]:
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet; the second of two would wait for the first

        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                repeat = sum(call.body["messages"] == body["messages"] for call in server.calls)
                authorization = self.headers["Authorization"]
                call = Call(len(server.calls), repeat, self.path, authorization, body)
                server.calls.append(call)
                at_once += 1
                server.most_at_once = max(server.most_at_once, at_once)
            response = server.behaviour(call)
            time.sleep(response.seconds)
            with lock:
                at_once -= 1
            # A client that was killed or stopped waiting cannot be answered.
            with contextlib.suppress(ConnectionError):
                self._send(response)

        def _send(self, response: Response) -> None:
            text = response.body
            content = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(response.status)
            headers = {"Content-Type": "application/json", **response.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = JudgeServer(f"http://127.0.0.1:{http.server_address[1]}/v1", behaviour)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


# ---- behaviours ----------------------------------------------------------------------------------


def says(text: str, finish_reason: str = "stop", seconds: float = 0.0) -> Response:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    return Response(
        200,
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "judge-2026-01-01",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        },
        seconds=seconds,
    )


def error(
    status: int,
    message: str = "no",
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = {"error": {"message": message, "type": "error", "param": param, "code": code}}
    return Response(status, body, headers or {})


def rate(call: Call) -> Response:
    """A rating from 1 to 10 that depends on the messages alone."""
    return says(f"Fair enough. Rating: [[{1 + sum(call.messages.encode()) % 10}]]")


def first_then(first: Response, *more: Response) -> Behaviour:
    """Answers the very first requests with these responses, and then rates."""
    responses = (first, *more)
    return lambda call: responses[call.number] if call.number < len(responses) else rate(call)


def refuse(*names: str) -> Behaviour:
    """Refuses parameters, one in each answer, as OpenAI's newer models do."""

    def behaviour(call: Call) -> Response:
        for name in names:
            if name in call.body:
                code = "unsupported_value" if name == "temperature" else "unsupported_parameter"
                return error(400, f"Unsupported: '{name}'", code=code, param=name)
        return rate(call)

    return behaviour


def quota() -> Response:
    return error(429, "You exceeded your current quota", code="insufficient_quota")
