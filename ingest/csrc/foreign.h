/* What somebody speaks who took a frame port for another one. No ticket begins like this, so such bytes are bad anyway; to
 * tell what they are saves the operator a search. */
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

#endif
