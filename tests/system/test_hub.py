"""Whether the hub answers: through a mirror, through a proxy, and not at all when offline."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from places import ROOT


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server, with the paths that it was asked for in `asked`."""
    with HTTPServer(("127.0.0.1", 0), Handler) as started:
        started.asked = []
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()


def answers(**environment):
    """Whether the hub answers in a process with these variables, and whether it is offline then."""
    code = (
        "from tddpo_jax.system import hub; hub.offline_unless_it_answers(); import os;"
        "print(hub.constants.HF_HUB_OFFLINE, os.environ.get('HF_HUB_OFFLINE'))"
    )
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("HF_")
    }
    printed = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, env={**plain, **environment}, text=True
    )
    return {"False None": True, "True 1": False}[printed.strip()]


def test_a_mirror_is_the_hub(server):
    url = f"http://127.0.0.1:{server.server_port}"
    assert answers(HF_ENDPOINT=url)
    assert len(server.asked) == 1
    assert not answers(HF_ENDPOINT=url, HF_HUB_OFFLINE="1")
    assert len(server.asked) == 1


def test_a_proxy_leads_to_it(server):
    url = f"http://127.0.0.1:{server.server_port}"
    assert answers(HF_ENDPOINT="http://hub.invalid", http_proxy=url)
    assert server.asked[0].startswith("http://hub.invalid")


def test_what_does_not_answer_is_left_alone():
    assert not answers(HF_ENDPOINT="http://127.0.0.1:1")
