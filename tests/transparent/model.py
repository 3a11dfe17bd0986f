"""A model that says who it is, who called it and with which headers; its own process.

    python model.py NAME PORT

Any path answers JSON; /healthz answers without being counted.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COUNT_PATH = "/count"
HEALTH_PATH = "/healthz"


class Model(BaseHTTPRequestHandler):
    """Answers and counts."""

    protocol_version = "HTTP/1.1"
    name = ""
    count = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        """Answer."""
        if self.path not in (HEALTH_PATH, COUNT_PATH):
            with Model.lock:
                Model.count += 1
        body = json.dumps(
            {
                "pod": Model.name,
                "peer": self.client_address[0],
                "count": Model.count,
                "headers": {name.lower(): value for name, value in self.headers.items()},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: the test reads the answers."""


class Server(ThreadingHTTPServer):
    """Takes a burst of connections."""

    request_queue_size = 128
    daemon_threads = True


if __name__ == "__main__":
    Model.name = sys.argv[1]
    Server(("0.0.0.0", int(sys.argv[2])), Model).serve_forever()
