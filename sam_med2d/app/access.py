"""Who may ask: a layer around the whole app, before any route.

- The Host of a request is the address that it arrived at, a name of this machine's own, or one that --allow_host names:
  no page of another site that points its own name here (DNS rebinding) gets an answer.
- A request that a page of another origin started is refused, whatever it asks for, but for opening the page itself, and
  of an origin that --allow_origin names.
- Where the app listens beyond this machine, a token is needed, which comes with the address that is printed.

Every answer, refusals included, tells the browser to load nothing from elsewhere, to run no other script, not to show
the page inside of another, and to keep nothing.
"""

import ipaddress
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
INVITED = {  # to pages of other origins that may ask
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "600",
}


def is_local(host: str) -> bool:
    """Whether a server that listens on `host` hears this machine alone."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(value: str) -> str:
    """Of a Host header, or of what a person names: without its port, in lower case. Nothing where it is none."""
    value = value.strip().lower()
    if value.startswith("["):
        name, bracket, port = value[1:].partition("]")
        good = bracket and (not port or (port[0] == ":" and port[1:].isdecimal()))
        return name if good else ""
    name, colon, port = value.partition(":")
    return name.rstrip(".") if not colon or port.isdecimal() else ""


class Guard:
    """An ASGI app around another one."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] = (),
        token: str = "",
        port: int = 0,
        origins: Sequence[str] = (),
        doors: Sequence[str] = (),
    ) -> None:
        """hosts: names that it may be called by, beside those of this machine. token: nothing where none is needed.

        port: of the server, which tells its cookie from those of others on this machine. origins: of other pages that
        may ask, such as http://localhost:3000. doors: paths that are answered without a token, where it is asked for.
        """
        self._app = app
        self._hosts = {*LOCAL_NAMES, *map(host_of, hosts)}
        self._token = token
        self._cookie = f"sam_med2d_{port}"
        self._origins, self._doors = {origin.lower().rstrip("/") for origin in origins}, {*doors}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers, new_cookie = Headers(scope=scope), ""
        origin = headers.get("origin", "")
        invited = origin.lower() in self._origins

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                if invited:
                    for name, value in {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **INVITED}.items():
                        answer[name] = value
                if new_cookie:
                    answer.append("Set-Cookie", new_cookie)
            await send(message)

        status, refusal = self._refusal(scope, headers, invited)
        if not refusal and invited and scope["method"] == "OPTIONS":
            await PlainTextResponse("")(scope, receive, with_headers)
            return
        if refusal:
            await PlainTextResponse(refusal, status)(scope, receive, with_headers)
            return
        if self._token and self._in_address(scope):
            new_cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers, invited: bool) -> tuple[int, str]:
        """A status and a line, or no line. invited: whether a page asks that may."""
        named = headers.getlist("host")
        host = host_of(named[0]) if len(named) == 1 else ""
        arrived_at = (scope.get("server") or ("",))[0]
        if not host or host not in {*self._hosts, arrived_at}:
            return 421, "This app does not answer to that name. Start it with --allow_host NAME, if it is yours."
        opens = scope["method"] == "GET" and scope["path"] == "/"
        origins = headers.getlist("origin")
        foreign = any(origin.partition("://")[2].lower() != named[0].strip().lower() for origin in origins)
        if foreign and not (invited and len(origins) == 1):
            return 403, "This app answers its own page alone, and this was asked by that of another site."
        site = headers.get("sec-fetch-site", "same-origin")
        navigates = opens and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("same-origin", "none") and not navigates and not invited:
            return 403, "This app answers its own page alone, and this was asked by that of another site."
        asks_how = invited and scope["method"] == "OPTIONS"  # of a browser, before it sends the token
        if self._token and not asks_how and scope["path"] not in self._doors and not self._has_token(scope, headers):
            return 401, (
                "Open the address that was printed at the start: the token in it is missing here. Programs send it as "
                "Authorization: Bearer TOKEN."
            )
        return 200, ""

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer "), headers.get("token", "")]
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if self._cookie in cookies:
            given.append(cookies[self._cookie].value)
        return self._in_address(scope) or any(self._is_token(one) for one in given)

    def _in_address(self, scope: Scope) -> bool:
        """Whether it is the page that is asked for, with the token in its address."""
        said = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        return scope["path"] == "/" and self._is_token(said[0])

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())
