"""A server of the files of a folder, by HTTP with ranges: `python -m tests.engines.rasters.ranges FOLDER`."""

from __future__ import annotations

import http.server
import re
import sys
from pathlib import Path


class _Handler(http.server.BaseHTTPRequestHandler):
    folder: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        file = self.folder / self.path.split("?")[0].lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return b""
        whole = file.read_bytes()
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        part = whole[int(wanted[1]) : int(wanted[2] or len(whole)) + 1] if wanted else whole
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return part

    def log_message(self, *_: object) -> None:
        """Silent."""


if __name__ == "__main__":
    _Handler.folder = Path(sys.argv[1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
