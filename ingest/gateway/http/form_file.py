"""The file of a form, as `curl -F file=@FILE` and browsers send it: a body whose bytes are those of the one file in it.

    --BOUNDARY              fields, if there are any: passed over
    --BOUNDARY              the file's head, an empty line, its bytes
    --BOUNDARY              fields
    --BOUNDARY--            and the end

The file goes straight into the buffers of its receiver. What stands beside it, in all, is bounded. So is what is held here:
what a delimiter may begin with, and what came with the file's head or behind its last byte.
"""

from __future__ import annotations

import asyncio

from ingest.gateway.http.failures import Failure
from ingest.gateway.http.form_part import Part, bad_form, parse_head, several_files
from ingest.limits import FORM_BESIDE_SIZE_MAX, FORM_HEAD_SIZE_MAX, FORM_SEARCH_SIZE, FORM_TAKE_SIZE
from ingest.objects.body import Body


class FormFile:
    """``source``: the bytes of the form. `begin` first, then `fill`: both raise Failure 400 for what is no form, or one
    with another number of files."""

    def __init__(self, source: Body, boundary: bytes) -> None:
        self.ended = False
        self._source = source
        self._delimiter = b"\r\n--" + boundary
        self._raw = bytearray(
            b"\r\n"
        )  # came, and is not given yet; a delimiter stands behind the end of a line
        self._beside = FORM_BESIDE_SIZE_MAX  # bytes that may still come beside the file
        self._found = False  # the file is given, and `_raw` begins with what stands behind it

    # --- before the file

    async def begin(self) -> Part:
        """The head of the file. What comes before it is passed over."""
        while True:
            await self._pass_delimiter()
            end = await self._find(b"\r\n", FORM_HEAD_SIZE_MAX)
            if self._raw.startswith(b"--"):
                raise bad_form("it has no file: `curl -F file=@FILE` sends one")
            _check_padding(self._raw[:end])
            self._pass(end)
            stop = await self._find(b"\r\n\r\n", FORM_HEAD_SIZE_MAX)
            part = parse_head(bytes(self._raw[2:stop]))
            self._pass(stop + 4)
            if part.filename is not None:
                return part

    async def _pass_delimiter(self) -> None:
        while (at := self._raw.find(self._delimiter)) < 0:
            self._pass(max(0, len(self._raw) - len(self._delimiter)))
            await self._come()
        self._pass(at + len(self._delimiter))

    async def _find(self, mark: bytes, size_max: int) -> int:
        """Where it begins, of what is held; ``_raw`` may end first for what needs no mark: the end of the form."""
        while (at := self._raw.find(mark)) < 0:
            if self._raw.startswith(b"--"):
                return 2
            if len(self._raw) > size_max:
                raise bad_form(f"the head of a part has more than {size_max} bytes")
            await self._come()
        return at

    async def _come(self) -> None:
        """Something more came, or this form is cut."""
        if self._source.ended:
            raise _cut()
        await self._take(None)

    def _pass(self, size: int) -> None:
        del self._raw[:size]
        self._beside -= size
        if self._beside < 0:
            raise _too_much()

    # --- the file

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        loop = asyncio.get_running_loop()
        deadline = None if patience is None else loop.time() + patience

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - loop.time())

        filled = 0
        while not self._found and filled < len(buffer):
            rest = buffer[filled:]
            if self._raw:
                filled += self._give(rest)
                if self._found or filled == len(buffer):
                    break
                if self._source.ended:
                    raise _cut()
                # What is left may be the beginning of a delimiter: what comes next tells.
                if not await self._take(left()) and not self._source.ended:
                    return filled
            else:
                if self._source.ended:
                    raise _cut()
                came = await self._source.fill(rest, left())
                filled += self._sift(rest[:came])
                if came < len(rest) and not self._source.ended:
                    return filled
        while self._found and not self.ended:
            if self._source.ended:
                self._check_rest()
                self.ended = True
            elif not await self._take(left()) and not self._source.ended:
                break
            elif len(self._raw) - len(self._delimiter) > self._beside:
                self._check_rest(whole=False)
                raise _too_much()
        return filled

    async def _take(self, patience: float | None) -> int:
        """A few bytes more are held. Returns how many came."""
        piece = memoryview(bytearray(FORM_TAKE_SIZE))
        came = await self._source.fill(piece, patience)
        self._raw += piece[:came]
        return came

    def _give(self, buffer: memoryview) -> int:
        """Of what is held: as much as is the file's for certain, and has room."""
        at = self._raw.find(self._delimiter)
        certain = len(self._raw) - self._held(self._raw) if at < 0 else at
        size = min(certain, len(buffer))
        buffer[:size] = self._raw[:size]
        del self._raw[:size]
        self._found = size == at
        return size

    def _sift(self, came: memoryview) -> int:
        """How many of the bytes that came are the file's for certain. The others are held."""
        overlap = len(self._delimiter) - 1
        for start in range(0, len(came), FORM_SEARCH_SIZE):
            at = bytes(came[start : start + FORM_SEARCH_SIZE + overlap]).find(self._delimiter)
            if at >= 0:
                self._found = True
                self._raw += came[start + at :][: len(self._delimiter) + FORM_BESIDE_SIZE_MAX + 1]
                return start + at
        held = self._held(came)
        self._raw += came[len(came) - held :]
        return len(came) - held

    def _held(self, data: memoryview | bytearray) -> int:
        """How many of its last bytes may be the beginning of a delimiter."""
        tail = bytes(data[-(len(self._delimiter) - 1) :])
        at = tail.find(b"\r")
        while at >= 0 and not self._delimiter.startswith(tail[at:]):
            at = tail.find(b"\r", at + 1)
        return 0 if at < 0 else len(tail) - at

    # --- behind the file

    def _check_rest(self, whole: bool = True) -> None:
        """What follows the file: fields, and the end. ``whole``: all of it has come, if it is not too much."""
        raw, at = bytes(self._raw), len(self._delimiter)
        if len(raw) - at > self._beside:
            whole = False
        while raw[at : at + 2] != b"--":
            end = raw.find(b"\r\n", at)
            stop = raw.find(b"\r\n\r\n", end)
            if end >= 0:
                _check_padding(raw[at:end])
            if end < 0 or stop < 0:
                break
            if parse_head(raw[end + 2 : stop]).filename is not None:
                raise several_files()
            at = raw.find(self._delimiter, stop + 4)
            if at < 0:
                break
            at += len(self._delimiter)
        else:
            if raw[at + 2 :].strip(b" \t") not in (b"", b"\r\n"):
                raise bad_form("something stands behind its last boundary")
            if whole:
                return
        if whole:
            raise _cut()
        raise _too_much()

    async def close(self) -> None:
        await self._source.close()


def _check_padding(between: bytes | bytearray) -> None:
    """A boundary's line has nothing else but blanks."""
    if between.strip(b" \t"):
        raise bad_form("its boundary stands at the beginning of another line")


def _cut() -> Failure:
    return bad_form("it ends before its last boundary")


def _too_much() -> Failure:
    return bad_form(f"more than {FORM_BESIDE_SIZE_MAX >> 10} KiB stand beside its file")
