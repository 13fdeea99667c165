"""OpenSSL by ctypes: the library that Python's own ssl module has loaded.

Setting up is rare and is done through here, by `tls_context`; what happens for each record is done in C, by a table of
functions (`csrc/tls.h`) that is filled here.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from ingest.errors import ConfigError

# In the order of tls_library in csrc/tls.h.
_RUN_TIME = (
    "SSL_read",
    "SSL_write",
    "SSL_get_error",
    "SSL_do_handshake",
    "SSL_is_init_finished",
    "SSL_shutdown",
    "SSL_free",
    "ERR_clear_error",
    "ERR_peek_error",
)

_P, _I, _L, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p
_SET_UP: dict[str, tuple[Any, ...]] = {  # result, then arguments
    "TLS_server_method": (_P,),
    "TLS_client_method": (_P,),
    "SSL_CTX_new": (_P, _P),
    "SSL_CTX_free": (None, _P),
    "SSL_CTX_ctrl": (_L, _P, _I, _L, _P),
    "SSL_CTX_set_options": (ctypes.c_uint64, _P, ctypes.c_uint64),
    "SSL_CTX_set_verify": (None, _P, _I, _P),
    "SSL_CTX_set_num_tickets": (_I, _P, ctypes.c_size_t),
    "SSL_CTX_set_default_read_buffer_len": (None, _P, ctypes.c_size_t),
    "SSL_CTX_set_default_verify_paths": (_I, _P),
    "SSL_CTX_use_certificate": (_I, _P, _P),
    "SSL_CTX_use_PrivateKey": (_I, _P, _P),
    "SSL_CTX_check_private_key": (_I, _P),
    "SSL_CTX_get_cert_store": (_P, _P),
    "SSL_CTX_add_client_CA": (_I, _P, _P),
    "X509_STORE_add_cert": (_I, _P, _P),
    "X509_free": (None, _P),
    "EVP_PKEY_free": (None, _P),
    "BIO_new_mem_buf": (_P, _S, _I),
    "BIO_free": (_I, _P),
    "PEM_read_bio_X509": (_P, _P, _P, _P, _P),
    "PEM_read_bio_PrivateKey": (_P, _P, _P, _P, _P),
    "SSL_new": (_P, _P),
    "SSL_free": (None, _P),
    "SSL_do_handshake": (_I, _P),
    "SSL_get_error": (_I, _P, _I),
    "SSL_set_fd": (_I, _P, _I),
    "SSL_set_accept_state": (None, _P),
    "SSL_set_connect_state": (None, _P),
    "SSL_ctrl": (_L, _P, _I, _L, _P),
    "SSL_set1_host": (_I, _P, _S),
    "SSL_get0_param": (_P, _P),
    "X509_VERIFY_PARAM_set1_ip_asc": (_I, _P, _S),
    "ERR_clear_error": (None,),
    "ERR_get_error": (ctypes.c_ulong,),
    "ERR_reason_error_string": (_S, ctypes.c_ulong),
}


class Library:
    """OpenSSL. ConfigError when none is found."""

    def __init__(self) -> None:
        self._handle = _load()
        for name, (result, *arguments) in _SET_UP.items():
            function = getattr(self._handle, name)
            function.restype, function.argtypes = result, arguments
        addresses = [ctypes.cast(getattr(self._handle, name), _P).value for name in _RUN_TIME]
        self._table = (_P * len(_RUN_TIME))(*addresses)

    @property
    def table(self) -> int:
        """The address of the table of functions that `csrc/tls.h` calls."""
        return ctypes.addressof(self._table)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._handle, name)
        return function

    def reason(self) -> str:
        """What the last call that failed says; forgets it."""
        code = found = self.ERR_get_error()
        while code:
            code = self.ERR_get_error()
        return error_text(found)


@functools.cache
def library() -> Library:
    """The one of this process. ConfigError when none is found."""
    return Library()


def _load() -> ctypes.CDLL:
    import _ssl  # its own dependencies are searched too, so this is exactly the library that it uses

    for name in (getattr(_ssl, "__file__", None), None, "libssl.so.3", "libssl.so"):
        try:
            handle = ctypes.CDLL(name)
            if all(hasattr(handle, function) for function in (*_RUN_TIME, *_SET_UP)):
                return handle
        except OSError:
            continue
    raise ConfigError(
        "TLS needs OpenSSL 1.1.1 or later as a shared library (libssl.so.3), and none was found"
    )


def error_text(code: int) -> str:
    """What an error of OpenSSL means, in its words."""
    text = library().ERR_reason_error_string(code) if code else None
    return text.decode() if text else "unknown error" if code else "the peer went away"
