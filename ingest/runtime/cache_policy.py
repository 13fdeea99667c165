"""Who may use an answer beside its client: caches on its way (RFC 9111), and pages of other sites in the same browser.

An object may be kept and is asked for again each time, unless its uploader said otherwise; a page's file likewise. All else
is of the moment: lists, figures, links, errors and what changes made.
"""

from __future__ import annotations

import re

CACHE_CONTROL = "Cache-Control"
REVALIDATE = "no-cache"  # may be kept, and is asked for again each time, by its ETag: what was replaced or deleted is seen
NO_STORE = "no-store"

# Of every answer. A browser gives it to no page of another site, as a script, style or image; what that page could otherwise
# run, or see the size of. And it takes it for what its uploader said it is.
FENCE = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}

# The same of answers that are written as bytes.
MARK_LINES = "".join(f"{name}: {value}\r\n" for name, value in {CACHE_CONTROL: NO_STORE, **FENCE}.items())

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEMBER = re.compile(rf"""[ \t,]*(({_TOKEN})(?:=(?:{_TOKEN}|"[^"\\]*"))?)[ \t]*(?:,[ \t,]*|$)""")
_OF_ANSWERS = frozenset(
    (
        "immutable",
        "max-age",
        "must-revalidate",
        "must-understand",
        "no-cache",
        "no-store",
        "no-transform",
        "private",
        "proxy-revalidate",
        "public",
        "s-maxage",
        "stale-if-error",
        "stale-while-revalidate",
    )
)


def of_an_answer(given: str) -> dict[str, str]:
    """`Cache-Control` of an upload as it comes back with the object: the words that an answer may say. Empty when there
    are none, as of a request's own words (`only-if-cached`), or when it cannot be read."""
    kept = []
    at = 0
    while at < len(given):
        found = _MEMBER.match(given, at)
        if found is None:
            return {}
        if found[2].lower() in _OF_ANSWERS:
            kept.append(found[1])
        at = found.end()
    return {CACHE_CONTROL: ", ".join(kept)} if kept else {}
