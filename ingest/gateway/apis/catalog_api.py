"""What the page and the `ingest` commands ask, on the shared port alone: all namespaces, and the objects of any of them.

Namespaces and names are parameters here, not parts of a path: what stands between may tidy up paths, and a browser would
never ask for an object `..`.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from aiohttp import web

from ingest import ticket
from ingest.catalog.version import ANY, check_name, check_namespace
from ingest.errors import UsageError
from ingest.gateway.apis import objects_api, store_api
from ingest.gateway.http.download_links import PARAMETERS as LINK_QUERY
from ingest.gateway.http.download_links import PATH as DOWNLOAD
from ingest.gateway.http.exchange import Exchange, json_response
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.http_downloads import send_object
from ingest.gateway.http.http_uploads import describe
from ingest.gateway.http.listing import PAGE_QUERY, describe_history, send_page
from ingest.gateway.http.preconditions import condition_of
from ingest.gateway.http.routes import Route
from ingest.runtime.cache_policy import CACHE_CONTROL, NO_STORE

# In these an API deletes. The others are written once; who deletes there has the command line.
_DELETING = frozenset((objects_api.NAMESPACE, store_api.NAMESPACE))

_ONE = frozenset(("namespace", "name"))


def routes() -> list[Route]:
    return [
        Route("/catalog/namespaces", {"GET": _namespaces}),
        Route("/catalog/objects", {"GET": _objects}, query={"GET": PAGE_QUERY | {"namespace"}}),
        Route("/catalog/object", {"GET": _get, "DELETE": _delete}, query={"GET": _ONE, "DELETE": _ONE}),
        Route("/catalog/version", {"GET": _version}, query={"GET": _ONE | {"id"}}),
        Route("/catalog/link", {"GET": _link}, query={"GET": _ONE}),
        Route(DOWNLOAD, {"GET": _download}, public=True, query={"GET": LINK_QUERY}),
    ]


async def _namespaces(exchange: Exchange) -> web.StreamResponse:
    return json_response({"namespaces": await exchange.store.namespaces()})


async def _objects(exchange: Exchange) -> web.StreamResponse:
    query = exchange.query
    return await send_page(exchange, _checked(query.pop("namespace", ""), check_namespace), query)


async def _get(exchange: Exchange) -> web.StreamResponse:
    return await send_object(exchange, *_asked(exchange))


async def _delete(exchange: Exchange) -> web.StreamResponse:
    namespace, name = _asked(exchange)
    if namespace not in _DELETING:
        message = f"no API deletes in the namespace {namespace!r}: `ingest rm` does"
        raise Failure(405, "method_not_allowed", message, {"Allow": "GET, HEAD"})
    condition = condition_of(exchange.headers, ANY)
    return json_response(describe(await exchange.store.delete(namespace, name, condition)))


async def _version(exchange: Exchange) -> web.StreamResponse:
    """A live version, by its name or by its ObjectID, and the history of its name."""
    query, known = exchange.query, exchange.store
    if query.keys() == {"id"}:
        version = await known.stat_object(query["id"])
    else:
        version = await known.stat(*_asked(exchange))
    history = await known.history(version.namespace, version.name)
    return json_response(
        describe(version)
        | {
            "namespace": version.namespace,
            "headers": version.headers,
            "extents": [(ticket.format(one.first), one.count) for one in version.extents],
            "history": describe_history(history),
        }
    )


async def _link(exchange: Exchange) -> web.StreamResponse:
    namespace, name = _asked(exchange)
    await exchange.store.stat(namespace, name)
    url = exchange.services.links.make(namespace, name)
    return json_response({"url": url})


async def _download(exchange: Exchange) -> web.StreamResponse:
    namespace, name = exchange.services.links.check(exchange.query)
    leaf = quote(name.rstrip("/").rpartition("/")[2] or "object", safe="")
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{leaf}",
        CACHE_CONTROL: NO_STORE,  # a link has its time, whoever keeps what it led to
    }
    return await send_object(exchange, namespace, name, lambda _: headers)


def _asked(exchange: Exchange) -> tuple[str, str]:
    """Namespace and name. Failure 400."""
    query = exchange.query
    if query.keys() != {"namespace", "name"}:
        raise Failure(400, "bad_query", "an object is asked for by namespace and name")
    return _checked(query["namespace"], check_namespace), _checked(query["name"], check_name)


def _checked(text: str, check: Callable[[str], str]) -> str:
    """Failure 400."""
    try:
        return check(text)
    except UsageError as error:
        raise Failure(400, "bad_name", str(error)) from None
