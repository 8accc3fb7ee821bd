"""The HTTP side of the service: routes, limits, errors, keys, metrics; and the process that listens."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recstack.errors import ConfigError, RequestError
from recstack.serving.messages import MAX_BODY, Event, Events, Query, Rank, Recommend, Users, from_json, from_query
from recstack.serving.service import Service

logger = logging.getLogger("recstack.serving")
BODY_SECONDS = 10  # in which a body must have come
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PAGE = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_OPEN = ("/", "/health")  # what needs no key, with /static/: none of it tells of users or items
Handler = Callable[[Request], Awaitable[Any]]


class Pool:
    """A few threads for the models, and a queue that ends: who comes when it is full is told so at once."""

    def __init__(self, workers: int, queue: int, threads: int | None) -> None:
        def begin() -> None:
            if threads is not None:
                torch.set_num_threads(threads)

        self.room, self.busy = workers + queue, 0
        self._threads = ThreadPoolExecutor(workers, "recstack", begin)

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """`work(*args)` on a thread; raises RequestError (503) without a place in the queue."""
        if self.busy >= self.room:
            raise RequestError("The service is busy; try again in a second.", status=503)
        self.busy += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
        future.add_done_callback(self._done)  # and not when the client has gone: the thread works on
        return await asyncio.shield(future)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self.busy -= 1
        if not future.cancelled():
            future.exception()  # somebody may have stopped waiting for it

    def close(self) -> None:
        """No more work."""
        self._threads.shutdown(cancel_futures=True)


def app(
    cascade: Any,
    *,
    event_log: str | Path | None = None,
    api_key: str | None = None,
    hosts: Sequence[str] | None = None,
    workers: int = 1,
    queue: int = 32,
    threads: int | None = 1,
    items: Mapping[str, Mapping[str, Any]] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    fusion: str | None = None,
) -> Starlette:
    """The service as a Starlette (ASGI) application, warmed up.

    Args:
        cascade: a fitted cascade or retriever, or the path of a bundle with one.
        event_log: a JSONL file: events of ``POST /events`` are written to it before they count, and read from it at the
            start.
        api_key: what clients have to send, as ``Authorization: Bearer <key>`` or ``X-API-Key``; None: nothing.
        hosts: names that the Host header may have; None: any.
        workers: threads that run models; queue: requests that may wait for one, more are refused with 503.
        threads: torch's threads per operation; None leaves them as they are.
        items: titles and attributes for people, ``{str(raw id): {"title": ...}}``; default: the bundle's items.json.
        evaluation: last measurements; default: the bundle's metrics.json.
        trust: packages besides recstack whose classes the bundle may name.
        fusion: an expression over the ranker's tasks that orders candidates in place of the saved one; see `rs.Fusion`.

    Raises:
        BundleError, ConfigError, DataError: see `Service`; an empty key.
    """
    if api_key is not None and not api_key.strip():
        raise ConfigError("The API key is empty, so that everybody would have it; give a long random text.")
    service = Service(cascade, event_log=event_log, items=items, evaluation=evaluation, trust=trust, fusion=fusion)
    pool = Pool(workers, queue, threads)
    service.metrics.gauge("busy", "Requests that run or wait for a thread.", lambda: pool.busy)

    async def recommend(request: Request) -> Any:
        if request.method == "POST":
            asked = from_json(await _body(request), Recommend)
            return await pool.run(service.recommend, asked.user_id, asked.k, asked.context, asked.time)
        asked = _asked(request)
        return await pool.run(service.recommend, service.user_id(asked.user_id), asked.k, None, asked.time)

    async def explain(request: Request) -> Any:
        asked = _asked(request)
        return await pool.run(service.explain, service.user_id(asked.user_id), asked.k, asked.time)

    async def rank(request: Request) -> Any:
        asked: Rank = from_json(await _body(request), Rank)
        return await pool.run(service.rank, asked.user_id, asked.items, asked.context, asked.time)

    async def events(request: Request) -> Any:
        asked: Event | list[Event] = from_json(await _body(request), Events, "events")
        return await pool.run(service.take, asked if isinstance(asked, list) else [asked])

    async def users(request: Request) -> Any:
        asked = from_query(request.query_params, Users)
        return await pool.run(service.users, asked.q, asked.limit)

    async def user(request: Request) -> Any:
        return await pool.run(service.user, service.user_id(request.path_params["user_id"]))

    async def funnel(request: Request) -> Any:
        return service.funnel()

    async def health(request: Request) -> Any:
        return {"status": "ok"}

    async def metrics(request: Request) -> Any:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        pool.close()
        service.close()

    routes = [
        _route("/recommend", recommend, "GET", "POST"),
        _route("/rank", rank, "POST"),
        _route("/explain", explain, "GET"),
        _route("/events", events, "POST"),
        _route("/health", health, "GET"),
        _route("/metrics", metrics, "GET"),
        _route("/api/users", users, "GET"),
        _route("/api/user/{user_id:path}", user, "GET"),
        _route("/api/funnel", funnel, "GET"),
        *[_route(path, partial(_static, *file), "GET") for path, file in _files().items()],
    ]
    front = Middleware(Front, service=service, api_key=api_key, hosts=hosts)
    new = Starlette(
        routes=routes, middleware=[front], lifespan=lifespan, exception_handlers={HTTPException: _http_error}
    )
    new.router.redirect_slashes = False  # to another path the client has to go by itself
    new.state.service, new.state.pool = service, pool
    return new


class Front:
    """What every request passes: its id, the host and the key it comes with, and the books."""

    def __init__(self, app: ASGIApp, service: Service, api_key: str | None, hosts: Sequence[str] | None) -> None:
        self.app, self.metrics = app, service.metrics
        self.key = None if api_key is None else hashlib.sha256(api_key.encode()).digest()
        self.hosts = None if hosts is None else {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        scope["recstack.request_id"] = request_id
        try:
            refused = self._refuse(scope["path"], headers)
            await (refused or self.app)(scope, receive, answer)
        finally:
            endpoint = scope.get("recstack.endpoint", "other")
            self.metrics.count("requests_total", endpoint=endpoint, method=_method(scope), status=str(status))
            self.metrics.observe("request_seconds", time.perf_counter() - started, endpoint=endpoint)

    def _refuse(self, path: str, headers: Mapping[bytes, str]) -> Response | None:
        host = re.sub(r":\d*$", "", headers.get(b"host", "")).strip("[]").lower()
        if self.hosts is not None and host not in self.hosts:  # a page elsewhere whose name was pointed at us
            return _error(f"The host {host[:100]!r} is not served here.", "Host", 421)
        if self.key is None or path in _OPEN or path.startswith("/static/"):
            return None
        given = headers.get(b"x-api-key") or headers.get(b"authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(hashlib.sha256(given.encode("latin-1")).digest(), self.key):
            return None
        return _error("Send the API key as 'Authorization: Bearer <key>'.", "Authorization", 401)


# -- helpers ----------------------------------------------------------------------------------------------------------
def _route(path: str, handler: Handler, *methods: str) -> Route:
    """A route whose answers and failures are JSON."""

    async def endpoint(request: Request) -> Response:
        request.scope["recstack.endpoint"] = path
        try:
            answer = await handler(request)
            return answer if isinstance(answer, Response) else _json(answer)
        except RequestError as error:
            return _error(str(error), error.field, error.status)
        except ClientDisconnect:
            return _error("The client has gone.", None, 499)
        except Exception:
            name = request.scope.get("recstack.request_id")
            logger.exception("Request %s to %s failed.", name, path)
            return _error(f"The service failed on request {name}; its log says how.", None, 500)

    return Route(path, endpoint, methods=list(methods))


async def _body(request: Request) -> bytes:
    """A JSON body within the limits of size and time; raises RequestError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of another web site could be sent without asking us first
        raise RequestError("Send the body as Content-Type: application/json.", "Content-Type", 415)
    too_big = RequestError(f"The body is larger than {MAX_BODY} bytes; send less at once.", None, 413)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY:
        raise too_big
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise too_big
    except TimeoutError:
        raise RequestError(f"The body did not come within {BODY_SECONDS} seconds.", None, 408) from None
    return bytes(body)


def _asked(request: Request) -> Query:
    return from_query(request.query_params, Query)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _error(message: str, field: str | None, status: int) -> Response:
    headers = {503: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}, 413: {"connection": "close"}}.get(status)
    return _json({"error": message, "field": field}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Paths and methods that do not exist."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        response = _error("There is nothing at this path.", "path", 404)
    elif error.status_code == 405:
        response = _error(f"Method {_method(request.scope)} does not go with this path.", "method", 405)
    else:
        response = _error(f"{error.detail}.", None, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") else "other"


def _files() -> dict[str, tuple[bytes, str]]:
    """path → (content, media type) of the page for people."""
    found = {}
    for file in (resources.files("recstack.serving") / "static").iterdir():
        kind = _TYPES.get(Path(file.name).suffix)
        if kind is not None:
            found["/" if file.name == "index.html" else f"/static/{file.name}"] = (file.read_bytes(), kind)
    return found


async def _static(content: bytes, kind: str, request: Request) -> Response:
    return Response(content, 200, _PAGE, kind)


# -- the process ------------------------------------------------------------------------------------------------------
def serve(
    path: Any,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    *,
    event_log: str | Path | None = None,
    workers: int = 1,
    queue: int = 32,
    threads: int | None = 1,
    trust: Sequence[str] = (),
    fusion: str | None = None,
    log_level: str = "warning",
    ready: Callable[[str], None] | None = None,
) -> None:
    """Listen until interrupted (Ctrl-C, SIGTERM).

    Args:
        path: a bundle, or a fitted cascade.
        host: where to listen. Another than this machine itself needs a key.
        port: 0 takes a free one.
        ready: called with the URL once requests are taken.

    The others are those of `app`.

    Raises:
        ConfigError: a host that others can reach, and no key; a port that is taken; uvicorn missing.
        BundleError: the bundle cannot be served.
    """
    local = _is_local(host)
    if not local and not api_key:
        raise ConfigError(f"Host {host!r} can be reached from other machines; give an API key, or listen on 127.0.0.1.")
    try:
        import uvicorn
    except ModuleNotFoundError as e:
        raise ConfigError('Serving needs uvicorn: pip install "recstack[serve]".') from e
    hosts = ("localhost", "127.0.0.1", "::1", host) if local and api_key is None else None
    made = app(
        path,
        event_log=event_log,
        api_key=api_key,
        hosts=hosts,
        workers=workers,
        queue=queue,
        threads=threads,
        trust=trust,
        fusion=fusion,
    )
    config = uvicorn.Config(
        made, host, port, log_level=log_level, access_log=False, server_header=False, timeout_graceful_shutdown=5
    )
    try:
        listener = _listener(host, port)
    except OSError as error:
        made.state.service.close()
        raise ConfigError(f"Port {port} of {host} cannot be had ({error.strerror}); give another.") from None
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if ready is not None and not self.should_exit:
                ready(url)

    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
