"""Sources that do not wait: a transport stream at its own pace over TCP, UDP or RTSP."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.engines.video.clips import Array, write

_PACKET = 188  # bytes, MPEG-TS
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"


def transport_stream(shown: list[Array], folder: Path) -> list[bytes]:
    """One piece of an MPEG-TS for each picture, or nearly so; each picture can be decoded by itself."""
    write(folder / "sent.ts", shown, codec="mpeg2video", options={"g": "1", "b": "4M"}, container={"muxdelay": "0"})
    data = (folder / "sent.ts").read_bytes()
    packets = len(data) // _PACKET
    ends = [_PACKET * (packets * (index + 1) // len(shown)) for index in range(len(shown))]
    return [data[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


@contextmanager
def serving(
    pieces: list[bytes], fps: float, *later: list[bytes], kind: str = "tcp", away: float = 0.0, hangs: bool = False
) -> Iterator[str]:  # fmt: skip
    """The URL of a server that sends them to one client, at that rate from when it has connected, and hangs up.

    later: what the same address sends to the next clients, each time after so many seconds in which nobody is there.
    kind: tcp, rtsp or http.  hangs: in the end it still takes clients, and sends them nothing.
    """
    server = socket.create_server(("127.0.0.1", 0))
    port, closed = server.getsockname()[1], threading.Event()

    def serve() -> None:
        listening = server
        for index, each in enumerate((pieces, *later)):
            if index:
                if closed.wait(away):
                    return
                listening = socket.create_server(("127.0.0.1", port))
            listening.settimeout(30)
            with suppress(OSError):  # the client has seen enough
                client, _ = listening.accept()
                if not (hangs and index == len(later)):
                    listening.close()
                with client:
                    _SEND[kind](client, each, fps)
        if hangs:
            closed.wait(60)
        listening.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"{kind}://127.0.0.1:{port}/yard"
    finally:
        closed.set()
        server.close()
        thread.join(30)


def _send(client: socket.socket, pieces: list[bytes], fps: float) -> None:
    for piece in _paced(pieces, fps):
        client.sendall(piece)


def _parts(client: socket.socket, pieces: list[bytes], fps: float) -> None:
    """Pictures as JPEGs, each a part of an answer without end (multipart/x-mixed-replace), as many cameras do."""
    while client.recv(4096)[-4:] != b"\r\n\r\n":
        pass
    client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=next\r\n\r\n")
    for piece in _paced(pieces, fps):
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(piece)}\r\n\r\n"
        client.sendall(head.encode() + piece + b"\r\n")


def _paced(pieces: list[bytes], fps: float) -> Iterator[bytes]:
    begin = time.monotonic()
    for index, piece in enumerate(pieces):
        time.sleep(max(0.0, begin + index / fps - time.monotonic()))
        yield piece


def _play(client: socket.socket, pieces: list[bytes], fps: float) -> None:
    """RTSP 1.0 (RFC 2326) as far as one client over TCP needs it: MPEG-TS in RTP (RFC 2250), interleaved."""
    requests = client.makefile("r", encoding="ascii", newline="\r\n")
    while True:
        lines = list(iter(lambda: requests.readline().strip(), ""))
        if not lines:
            return
        verb = lines[0].split()[0]
        number = next(line.split(":")[1].strip() for line in lines if line.lower().startswith("cseq"))
        extra, body = "", ""
        if verb == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif verb == "DESCRIBE":
            extra, body = f"Content-Type: application/sdp\r\nContent-Length: {len(_SDP)}\r\n", _SDP
        elif verb == "SETUP":
            extra = "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        elif verb == "PLAY":
            extra = "Session: 1\r\n"
        client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{extra}\r\n{body}".encode())
        if verb == "PLAY":
            break
    sequence = 0
    for piece in _paced(pieces, fps):
        data = io.BytesIO(piece)
        stamp = int(time.monotonic() * 90_000) & 0xFFFFFFFF
        while payload := data.read(7 * _PACKET):
            header = b"\x80\x21" + sequence.to_bytes(2, "big") + stamp.to_bytes(4, "big") + b"\x00\x00\x00\x01"
            client.sendall(b"$\x00" + (len(header) + len(payload)).to_bytes(2, "big") + header + payload)
            sequence = (sequence + 1) & 0xFFFF


_SEND = {"tcp": _send, "rtsp": _play, "http": _parts}
