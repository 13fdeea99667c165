/* What somebody speaks who took a frame port for another one. No ticket begins like this: it has no space, no slash and no byte
 * below '0' but NUL. So such bytes are bad anyway. To tell what they are saves the operator a search, and its peer a wait. */
#ifndef INGEST_FOREIGN_H
#define INGEST_FOREIGN_H

#include <stdint.h>
#include <string.h>

enum foreign_protocol { FOREIGN_NONE = 0, FOREIGN_TLS, FOREIGN_HTTP };

/* The protocol whose first `size` bytes these are. */
static inline int foreign_protocol(const uint8_t *p, uint32_t size)
{
    static const char *const methods[] = {"GET ", "PUT ", "HEAD ", "POST ", "PRI * ", "PATCH ", "DELETE ", "OPTIONS ", "CONNECT "};
    /* A TLS record of type handshake, version 3.x. */
    if (size >= 3 && p[0] == 0x16 && p[1] == 3 && p[2] <= 4)
        return FOREIGN_TLS;
    if (size == 0 || p[0] < 'A' || p[0] > 'P')
        return FOREIGN_NONE;
    for (unsigned i = 0; i < sizeof methods / sizeof *methods; i++)
        if (size >= strlen(methods[i]) && memcmp(p, methods[i], strlen(methods[i])) == 0)
            return FOREIGN_HTTP;
    return FOREIGN_NONE;
}

/* Bytes from which on every protocol is recognised. */
enum { FOREIGN_SIZE = 9 };

#define FOREIGN_ANSWER(size, text) \
    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: " size \
    "\r\nConnection: close\r\n\r\n" text

/* What such a peer is answered, in its protocol, before its connection ends. `tls`: the port speaks TLS. */
static inline const char *foreign_answer(int protocol, int tls, uint32_t *size)
{
    static const char http[] = FOREIGN_ANSWER("145",
        "This port speaks frames (docs/protocol.md), not HTTP. HTTP is on the port of the gateway (--http-listen) "
        "and on the admin port (--admin-listen).\n");
    static const char http_to_tls[] = FOREIGN_ANSWER("124",
        "This port speaks frames (docs/protocol.md) over TLS, not HTTP. HTTP is on the ports of --http-listen "
        "and of --admin-listen.\n");
    /* fatal, handshake_failure: without it a client waits, or reports a connection that broke. RFC 8446, 6. */
    static const char alert[] = "\x15\x03\x01\x00\x02\x02\x28";
    if (protocol == FOREIGN_TLS) {
        *size = sizeof alert - 1;
        return alert;
    }
    *size = tls ? sizeof http_to_tls - 1 : sizeof http - 1;
    return tls ? http_to_tls : http;
}

#endif
