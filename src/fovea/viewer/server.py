"""`fovea view RUN`: a small web server that shows one run folder, live while it trains, to its owner only.

It listens on this machine, under a random token in the address; it answers GET only, reads nothing outside the run
folder, and its pages can load nothing from anywhere else (content security policy) and run no inline script.
Not here: what the pages show (`pages`).

Try it: `fovea view runs/quickstart-seed0`; or in code `serve("runs/quickstart-seed0", announce=print)`.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fovea.types import UserError
from fovea.viewer.follow import RunFolder
from fovea.viewer.pages import Pages
from fovea.viewer.pictures import picture_path
from fovea.viewer.report import WEB

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",  # the address holds the token
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
STATIC = {
    "style.css": "text/css",
    "pages.css": "text/css",
    "pages.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_remote: bool = False,
    browser: bool = True,
    announce: Callable[[str], None] = print,
) -> None:
    """Show a run folder until interrupted.

    Arguments: `host` an address of this machine; one that others can reach needs `allow_remote`. `port` 0 takes any
    free one. `browser` opens the default one. `announce` gets the address, once, before anything is served.

    Raises UserError if the folder is no run folder, the host is refused or the port cannot be had.
    """
    pages = Pages(RunFolder(folder))
    local = check_host(host, allow_remote)
    listener = listen(host, port)
    token = secrets.token_urlsafe(24)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}/{token}/"
    announce(url)
    if browser:  # the socket listens already: a browser that is faster than the server waits
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    app = build_app(pages, token, hosts=(host, "127.0.0.1", "localhost", "::1") if local else None)
    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    config = uvicorn.Config(
        app, **quiet, lifespan="off", ws="none", proxy_headers=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listener])


def check_host(host: str, allow_remote: bool) -> bool:
    """Whether `host` is of this machine only. Raises UserError if it is not and `allow_remote` was not given."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not allow_remote:
        raise UserError(
            f"--host {host} lets other machines reach the pages (whoever knows the address sees the run); "
            "add --allow-remote if that is meant, or leave --host away and use an ssh tunnel."
        )
    return local


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises UserError if the address or port cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:  # gaierror, port taken, not permitted, 70000
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"Port {port} of {host} cannot be used ({why}); choose another with --port N, or none for any free one."
        ) from None


def build_app(pages: Pages, token: str, hosts: tuple[str, ...] | None = None) -> ASGIApp:
    """The ASGI application; everything is under `/TOKEN/`. `hosts`: names it may be called by, None: any."""

    def html(render: Callable[[], str]) -> HTMLResponse:
        try:
            return HTMLResponse(render())
        except UserError as error:
            return HTMLResponse(pages.error(str(error)), status_code=404)

    # Not async: starlette runs them in threads, for they read files.
    def overview(request: Request) -> Response:
        return html(pages.overview)

    def rollouts(request: Request) -> Response:
        return html(lambda: pages.rollouts(dict(request.query_params)))

    def held_out(request: Request) -> Response:
        return html(pages.held_out)

    def run(request: Request) -> Response:
        return html(pages.run)

    def live(request: Request) -> Response:
        return JSONResponse(pages.live())

    def picture(request: Request) -> Response:
        # The route takes no slash: only files directly in `pictures`, never the folder's other contents.
        path = picture_path(pages.folder.path, f"pictures/{request.path_params['name']}")
        if path is None or path.parent != (pages.folder.path / "pictures").resolve():
            raise HTTPException(404)
        # Written once, so a page may ask for it eight times and get it once.
        return FileResponse(path, media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404)
        return FileResponse(WEB / name, media_type=STATIC[name])

    routes = [
        Route("/", overview),
        Route("/rollouts", rollouts),
        Route("/held-out", held_out),
        Route("/run", run),
        Route("/live.json", live),
        Route("/pictures/{name}", picture),
        Route("/{name}", static),
    ]
    return Guard(Starlette(routes=[Mount(f"/{token}", routes=routes)]), token, hosts)


class Guard:
    """Lets through what knows the token and names an expected host, and puts `HEADERS` on every answer.

    The host is checked so that a foreign page cannot reach the server by a name that resolves to this machine.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...] | None) -> None:
        self.app = app
        self.token = token.encode()
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websocket here
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._checked(scope)(scope, receive, send_with_headers)

    def _checked(self, scope: Scope) -> ASGIApp:
        # "localhost:8000", "[::1]:8000", "127.0.0.1"
        name = Headers(scope=scope).get("host", "").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self.hosts is not None and name not in self.hosts:
            return PlainTextResponse("This host name is not served.", status_code=400)
        first = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
        if not secrets.compare_digest(first.encode("utf-8", "surrogatepass"), self.token):
            return PlainTextResponse(
                "Not found: open the address that `fovea view` printed.", status_code=404
            )
        return self.app
