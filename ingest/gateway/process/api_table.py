"""Which API has which routes: of each that `--api` can serve alone, and of the port that serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ingest.gateway.apis import (
    blob_api,
    catalog_api,
    chunks_api,
    commands_api,
    files_api,
    objects_api,
    sos_api,
    store_api,
)
from ingest.gateway.http.routes import Route
from ingest.gateway.page import page

# What `--api` can serve alone over HTTP, as it is there; `stream` is no HTTP.
APIS: Mapping[str, Callable[[], list[Route]]] = {
    "blob": blob_api.routes,
    "sos-upload": sos_api.upload_routes,
    "sos-fetch": sos_api.fetch_routes,
    "store": store_api.routes,
    "objects": objects_api.routes,
    "files": lambda: files_api.routes("/"),
    "chunks": chunks_api.routes,
}


def shared_routes() -> list[Route]:
    """Of the port that serves all APIs: `files` lies under /files/ there, `GET /` is the page's, and what the page and the
    commands ask is nowhere else."""
    found = [*files_api.routes("/files/"), *catalog_api.routes(), *commands_api.routes(), *page.routes()]
    for name, routes in APIS.items():
        if name != "files":
            found += [route for route in routes() if route.path != page.ROOT]
    return found
