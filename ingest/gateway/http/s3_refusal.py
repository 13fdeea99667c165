"""What is said in S3's words to a port that does not speak them: it is told so in S3's words, and nothing is done.

An S3 client says much of what it wants in headers and parameters alone: `PUT /b/k?acl` with `x-amz-acl` is no upload. Who
does not know them takes one request for another, and destroys what is there.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from aiohttp import web

from ingest.gateway.http.exchange import Exchange
from ingest.gateway.http.failures import Failure

_HEADERS = "x-amz-"
_OF_A_CDN = "x-amz-cf-id"  # CloudFront adds it to whatever it passes on
_PARAMETERS = ("x-amz-", "awsaccesskeyid")  # of signatures of version 4 and 2 in links
_SCHEMES = ("aws4-", "aws ")  # of Authorization


class S3Failure(Failure):
    """Its answer is the XML that S3 clients read: Amazon S3 API reference, "Error responses"."""

    def __init__(self, status: int, code: str, message: str, resource: str) -> None:
        super().__init__(status, code, message)
        self._resource = resource

    def response(self, request_id: str) -> web.Response:
        content = {
            "Code": self.code,
            "Message": self.message,
            "Resource": self._resource,
            "RequestId": request_id,
        }
        parts = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in content.items())
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{parts}</Error>'
        return web.Response(
            status=self.status, body=body.encode(), headers={"Content-Type": "application/xml"}
        )


def refuse_s3(exchange: Exchange) -> None:
    """S3Failure 501 for a request of an S3 client."""
    if _is_of_s3(exchange):
        path = exchange.target.path.encode("ascii", "replace").decode()
        raise S3Failure(501, "NotImplemented", "this port does not speak S3: nothing was changed", path)


def _is_of_s3(exchange: Exchange) -> bool:
    for name in exchange.request.headers:
        # In each request, and nearly none of them: the first letter spares the rest.
        if name[:1] in "xX" and (small := name.lower()).startswith(_HEADERS) and small != _OF_A_CDN:
            return True
    authorization = exchange.headers.get("Authorization")
    if authorization is not None and authorization.lower().startswith(_SCHEMES):
        return True
    return (
        any(name.lower().startswith(_PARAMETERS) for name in exchange.query)
        if exchange.target.query
        else False
    )
