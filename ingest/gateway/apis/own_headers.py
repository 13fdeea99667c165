"""Headers of an uploader's own, `X-…`, which come back with what was uploaded: `blob`, `sos-upload` and `sos-fetch`."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.catalog.version import Version

# Headers that do not come back, by who would act on them. Ends of names with a * stand for all that begin so. The table of
# docs/http.md is this one.
NOT_KEPT = {
    # An answer's orders to the proxies, caches and application servers that it passes: files to send in its place (nginx,
    # Apache, lighttpd, LiteSpeed, Perlbal, App Engine), archives to make of what it lists (mod_zip), ESI to run on its
    # body (Traffic Server), caches to purge, hosts to take out of use (Envoy).
    "proxies": (
        "x-accel-*", "x-archive-*", "x-sendfile*", "x-lighttpd-*", "x-litespeed-*", "x-lscache*", "x-reproxy-*",
        "x-appengine-*", "x-esi*", "x-envoy-*", "x-middleware-*", "x-reverse-proxy-*", "x-varnish*", "x-cache*",
    ),
    "browsers": (
        "x-frame-options", "x-content-type-options", "x-content-security-policy*", "x-webkit-*", "x-xss-protection",
        "x-dns-prefetch-control", "x-permitted-cross-domain-policies", "x-download-options", "x-ua-compatible",
        "x-sourcemap", "x-chrome*", "x-json",
    ),
    "crawlers": ("x-robots-tag", "x-pingback", "x-xrds-location"),
    # Of the upload and its sender, not of the content: addresses, credentials, what a proxy noted on its way.
    "the request": (
        "x-forwarded*", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-remote-*", "x-ssl-*", "x-original-*",
        "x-rewrite-url", "x-http-method*", "x-method-override", "x-requested-with", "x-request-id", "x-correlation-id",
        "x-amzn-trace-id", "x-cloud-trace-context", "x-b3-*", "x-csrf*", "x-xsrf*", "x-auth-*", "x-api-key",
        "x-access-token", "x-powered-by",
    ),
}  # fmt: skip
_NOT_KEPT = [name for names in NOT_KEPT.values() for name in names]
_EXACT = frozenset(name for name in _NOT_KEPT if not name.endswith("*"))
_PREFIXES = tuple(name[:-1] for name in _NOT_KEPT if name.endswith("*"))


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What the uploader says of the content in headers of his own, `X-…`, several of one name joined as HTTP does."""
    own: dict[str, str] = {}
    for name, value in headers.items():
        small = name.lower()
        if small.startswith("x-") and small not in _EXACT and not small.startswith(_PREFIXES):
            name = "-".join(part.capitalize() for part in small.split("-"))
            own[name] = f"{own[name]}, {value}" if name in own else value
    return own


def told_headers(version: Version) -> dict[str, str]:
    """Those of a version, as they come back; its `X-Mime-Type` as Content-Type too."""
    told = own_headers(version.headers)
    if "X-Mime-Type" in told:
        told["Content-Type"] = told["X-Mime-Type"]
    return told
