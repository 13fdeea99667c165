"""Who may ask for what: hosts that are served, origins that may change things, and tokens.

A web page of somebody else's must not use the browser of one of our users against a gateway that trusts its network: its
own name may lead to our address (DNS rebinding), so names that are not ours are refused; and what it sends across origins
carries its Origin.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from ingest.gateway.http.failures import Failure
from ingest.gateway.http.token_file import Tokens
from ingest.runtime.listeners import Address, is_loopback

_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Hosts:
    """Names and addresses that are served, beside those of loopback; ``any_address``: all addresses (a wildcard listens)."""

    names: frozenset[str]
    any_address: bool = False

    @classmethod
    def of(cls, listening: Iterable[Address], more: Iterable[str] = ()) -> Hosts:
        """Of the addresses that are listened on, and of names that the operator adds."""
        names = {_plain(name.partition("%")[0]) for name in more}
        any_address = False
        for host, _ in listening:
            names.add(_plain(host))
            try:
                address = ipaddress.ip_address(host.partition("%")[0])
            except ValueError:
                continue
            any_address |= address.is_unspecified
            names.add(str(address))  # as browsers write it, without the zone that only its machine knows
        return cls(frozenset(names), any_address)

    def include(self, host: str) -> bool:
        """Whether a Host header (`NAME`, `NAME:PORT`, `[V6]:PORT`) names one of them. Ports are not looked at: one that is
        forwarded has another number."""
        name = _plain(_split(host)[0])
        if name == "localhost" or name in self.names or is_loopback(name):
            return True
        try:
            # A zone is its client's own name for a link.
            address = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return self.any_address or str(address) in self.names


@dataclass(frozen=True)
class Access:
    """``tokens``: None when everybody may do everything."""

    hosts: Hosts
    tokens: Tokens | None = None

    def check(
        self, host: str | None, origin: str | None, authorization: str | None, *, changes: bool, public: bool
    ) -> None:
        """Of a request that ``changes`` something, or asks for what is ``public``. Failure 401, 403."""
        if host is not None and not self.hosts.include(host):
            raise Failure(
                403,
                "foreign_host",
                "the name in Host is none of this gateway's: its operator can add it with --host",
            )
        if changes and origin is not None and not same_origin(origin, host):
            raise Failure(403, "foreign_origin", "pages of other origins change nothing here")
        if self.tokens is None or public:
            return
        scheme, _, token = (authorization or "").partition(" ")
        may_change = self.tokens.find(token.strip(" ")) if scheme.lower() == "bearer" else None
        if may_change is None:
            raise Failure(
                401,
                "unauthorized",
                "a token is needed: Authorization: Bearer TOKEN",
                {"WWW-Authenticate": 'Bearer realm="ingest"'},
            )
        if changes and not may_change:
            raise Failure(403, "read_only", "this token is good for reading only")


def same_origin(origin: str, host: str | None) -> bool:
    """Whether the page with this Origin came from the host that the request is for."""
    scheme, separator, authority = origin.partition("://")
    if not separator or host is None or scheme not in _DEFAULT_PORTS:
        return False
    default = _DEFAULT_PORTS[scheme]
    theirs, ours = _split(authority), _split(host)
    return (_plain(theirs[0]), theirs[1] or default) == (_plain(ours[0]), ours[1] or default)


def _split(authority: str) -> tuple[str, str]:
    """Host and port (empty: none) of an authority."""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        return host, rest.removeprefix(":")
    host, _, port = authority.partition(":")
    return host, port


def _plain(name: str) -> str:
    return name.lower().rstrip(".")
