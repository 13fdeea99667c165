"""Every exception of ingest, in one tree.

    IngestError
      UsageError            the caller's fault: a wrong argument
        TicketError           not a ticket, or past the last one
        ForkedError           a client is used in a process that was forked from the one that made it
      ConfigError           what the operator set up does not fit (exit 78)
        KeyFileError          the key file is missing, malformed or readable by others
        AccessError           a gateway wants another token, or does not serve this name
        ForeignStoreError     the engine's store belongs to another catalog
        StoreFormatError      store.json or a format version that this program does not know
      BusyError             try again later (exit 75)
        StoreLockedError      another server holds the data directory
        PortTakenError        another process holds the port
      PeerError             the other end of a connection
        ProtocolError         it sent bytes that the protocol does not allow
        ConnectionLostError   it went away, or could not be reached
        RefusedError          it answered a status other than SAVED (see ``status``)
        CorruptFrameError     it sent a frame that fails its checksum, twice
        RecordError           the chunk that it sent holds no record
      DiskError             the disk's fault, or what lies on it
        CorruptionError       bytes that were durable and valid are not any more
        CatalogError          the catalog of objects, or a manifest, is not what it should be
        NoSpaceError          the disk is full
        ReadOnlyError         the disk may only be read, for now
        DataDirLostError      the data directory is not the one that was opened: nothing is saved any more
      ObjectError           an object can't be stored, read or deleted as asked
        NotFoundError         there is none of that name or id
        NameTakenError        there is one already
        PreconditionError     it is not, or no longer, the version that was asked for
        UploadLostError       the upload is no longer its process's: its deadline passed, or its bytes ended early
          OrderError            its manifest does not come behind that of the version it replaces

``exit_code`` is what the command line returns for an error that ends it.
"""

from __future__ import annotations

from ingest.status import Status


class IngestError(Exception):
    """Base of all errors that ingest raises on purpose."""

    exit_code = 1


class UsageError(IngestError, ValueError):
    exit_code = 2


class TicketError(UsageError):
    pass


class ForkedError(UsageError):
    pass


class ConfigError(IngestError):
    exit_code = 78


class KeyFileError(ConfigError):
    pass


class AccessError(ConfigError):
    pass


class ForeignStoreError(ConfigError):
    pass


class StoreFormatError(ConfigError):
    pass


class BusyError(IngestError):
    exit_code = 75


class StoreLockedError(BusyError):
    pass


class PortTakenError(BusyError):
    pass


class PeerError(IngestError):
    pass


class ProtocolError(PeerError):
    pass


class ConnectionLostError(PeerError):
    pass


class RefusedError(PeerError):
    """The server answered ``status`` for ``ticket``."""

    def __init__(self, ticket: str, status: Status) -> None:
        why = " (the disk is full: nothing was stored)" if status is Status.NO_SPACE else ""
        super().__init__(f"ticket {ticket}: the server answered {status.name}{why}")
        self.ticket = ticket
        self.status = status


class CorruptFrameError(PeerError):
    pass


class RecordError(PeerError):
    pass


class DiskError(IngestError):
    pass


class CorruptionError(DiskError):
    pass


class CatalogError(DiskError):
    pass


class NoSpaceError(DiskError):
    pass


class ReadOnlyError(DiskError):
    pass


class DataDirLostError(DiskError):
    pass


class ObjectError(IngestError):
    pass


class NotFoundError(ObjectError):
    pass


class NameTakenError(ObjectError):
    pass


class PreconditionError(ObjectError):
    pass


class UploadLostError(ObjectError):
    pass


class OrderError(UploadLostError):
    pass
