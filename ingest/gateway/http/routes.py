"""Which handler a request goes to. Paths are looked at as they came: what is a name stays undecoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ingest.gateway.http.exchange import Handler, no_route
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.form_part import is_form

CHANGING = frozenset(("PUT", "POST", "DELETE", "PATCH"))


@dataclass(frozen=True)
class Route:
    """``path`` is exact, or ends in `/*`: whatever follows is the tail. GET answers HEAD too. ``public``: needs no token.
    ``query``: the parameters that each method knows. ``forms``: POST makes an object, of the file of a form too. ``leads``:
    whether there can be anything under a tail."""

    path: str
    handlers: Mapping[str, Handler]
    public: bool = False
    query: Mapping[str, frozenset[str]] = field(default_factory=dict)
    forms: bool = False
    leads: Callable[[str], bool] = bool

    def handler(self, method: str) -> Handler:
        """Failure 405."""
        found = self.handlers.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = sorted({*self.handlers, *(["HEAD"] if "GET" in self.handlers else [])})
            raise Failure(
                405,
                "method_not_allowed",
                f"{method[:20]} is not possible here: {', '.join(allowed)}",
                {"Allow": ", ".join(allowed)},
            )
        return found

    def check_form(self, method: str, content_type: str | None) -> None:
        """A form where no object is made of its file would be stored with all that is around that. Failure 415."""
        if method not in CHANGING or (self.forms and method == "POST") or not is_form(content_type):
            return
        advice = "send the file itself, with -T FILE" if method == "PUT" else f"this {method} takes no file"
        raise Failure(415, "form", f"a form (curl -F) is not taken here: {advice}")

    def check_part(self, method: str, content_range: str | None) -> None:
        """A part that is stored as the whole would replace it. Failure 400."""
        if method in CHANGING and content_range is not None:
            message = "a part of an object cannot be stored: send all of it, without Content-Range"
            raise Failure(400, "content_range", message)

    def check_query(self, method: str, query: Mapping[str, str]) -> None:
        """A parameter that nobody reads may be what a request is about: in other APIs `?acl` is no upload. Failure 400."""
        if not query:
            return
        known = self.query.get("GET" if method == "HEAD" else method, frozenset())
        unknown = query.keys() - known
        if unknown:
            knows = ", ".join(sorted(known)) or "none"
            message = f"unknown parameters: {', '.join(sorted(unknown))[:100]}; this path knows {knows}"
            raise Failure(400, "bad_query", message)


class Routes:
    """An exact path goes first, then the first segment of it, then `/*`."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, Route] = {}
        self._below: dict[str, Route] = {}
        for route in routes:
            known = self._below if route.path.endswith("/*") else self._exact
            path = route.path.removesuffix("*")
            assert path not in known, f"two routes for {route.path}"
            known[path] = route

    def find(self, path: str) -> tuple[Route, str]:
        """The route and the tail. Failure 404."""
        route = self._exact.get(path)
        if route is not None:
            return route, ""
        first = path[: path.find("/", 1) + 1]
        for prefix in (first, "/"):
            route = self._below.get(prefix)
            if route is not None and route.leads(tail := path[len(prefix) :]):
                return route, tail
        raise no_route()
