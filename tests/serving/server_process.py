"""The embedded server as a real process, for tests."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from ports import free_ports

ROOT = Path(__file__).resolve().parents[2]


def cpu_of_children() -> float:
    """CPU seconds of the processes that have ended: how fast a command is, however busy the machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Server:
    """A server process: its lines, its ports, and a way to ask it over REST."""

    def __init__(self, *flags: str, rest: bool = True, grpc: bool = True):
        ports = free_ports(2)
        self.rest_port, self.grpc_port = ports[0] if rest else 0, ports[1] if grpc else 0
        words = [*flags, f"--rest_api_port={self.rest_port}", f"--port={self.grpc_port}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.server", *words],
            cwd=ROOT,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.first_answer: tuple = ()
        for pipe, lines in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(
                target=lambda pipe=pipe, lines=lines: lines.extend(iter(pipe.readline, "")), daemon=True
            ).start()
        if rest or grpc:
            self.wait_for("Exporting HTTP/REST API" if rest else "Running gRPC ModelServer")

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """The first line that holds this text, once it is printed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if text in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no line with {text!r} in {self.lines} {self.errors[-5:]}")

    def ask(self, path: str, body=None, *, method: str | None = None, raw: bytes | None = None):
        """HTTP status and JSON of a request; a body makes it a POST."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def client(self, model: str, kind: str = "rest", **options):
        """A client of this server, over REST or gRPC."""
        from serving.client import Client

        port = self.rest_port if kind == "rest" else self.grpc_port
        return Client(model=model, **{kind: f"localhost:{port}"}, **options)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
