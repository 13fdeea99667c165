"""The API of the `ingest` commands, on the shared port alone: any version by its ObjectID, all that is known of one, the
objects of any namespace, and the collector.

Names are parameters here, not parts of a path: what stands between may tidy up paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from ingest import ticket
from ingest.errors import UsageError
from ingest.gateway.downloads import send_version
from ingest.gateway.exchange import Collect, Exchange, json_response, no_route
from ingest.gateway.failures import Failure
from ingest.gateway.routes import Route
from ingest.gateway.target import decode
from ingest.gateway.uploads import describe, format_time
from ingest.objects.collector import described
from ingest.objects.version import Transition, Version, check_name, check_namespace


def routes() -> list[Route]:
    return [
        Route("/id/*", {"GET": _get}),
        Route("/catalog/version", {"GET": _version}),
        Route("/gc", {"GET": _waiting, "POST": _collect}),
    ]


async def _get(exchange: Exchange) -> web.StreamResponse:
    """The bytes of a version, in whatever namespace it is."""
    return await send_version(exchange, decode(exchange.tail))


async def _version(exchange: Exchange) -> web.StreamResponse:
    """A live version, by its name or by its ObjectID, and the history of its name."""
    query, store = exchange.query, exchange.store
    if query.keys() == {"id"}:
        version = await store.stat_object(query["id"])
    elif query.keys() == {"namespace", "name"}:
        version = await store.stat(*_checked(query["namespace"], query["name"]))
    else:
        raise Failure(400, "bad_query", "a version is asked for by namespace and name, or by id")
    history = await store.history(version.namespace, version.name)
    return json_response(_describe(version, history))


def _describe(version: Version, history: Sequence[Transition]) -> dict[str, Any]:
    return describe(version) | {
        "namespace": version.namespace,
        "headers": version.headers,
        "extents": [(ticket.format(one.first), one.count) for one in version.extents],
        "history": [
            {
                "version": step.version,
                "state": step.state.name.lower(),
                "time": format_time(step.time),
                "reason": step.reason,
                "size": step.size,
            }
            for step in history
        ],
    }


def _checked(namespace: str, name: str) -> tuple[str, str]:
    """Failure 400."""
    try:
        return check_namespace(namespace), check_name(name)
    except UsageError as error:
        raise Failure(400, "bad_name", str(error)) from None


async def _waiting(exchange: Exchange) -> web.StreamResponse:
    """What the collector would delete now."""
    return json_response(described(await _collector(exchange)(True)))


async def _collect(exchange: Exchange) -> web.StreamResponse:
    """Answered when nothing is left. BusyError while another collector is at work."""
    return json_response(described(await _collector(exchange)(False)))


def _collector(exchange: Exchange) -> Collect:
    collect = exchange.services.collect
    if collect is None:
        raise no_route()
    return collect
