/* TLS on the socket of one connection, in the two calls that a socket has: tls_receive and tls_send.
 *
 * OpenSSL reads and writes the socket itself, from the same turn and without the GIL, so that the connection keeps its
 * states, deadlines and limits whether it is encrypted or not. Its functions are found at run time (`openssl`
 * fills the table below, in this order): no headers of it are needed to build, and it is the library that Python's own
 * ssl module uses. The few values of its interface that stand here have been the same since 1.1.1.
 *
 *  state      comes from                               receive gives            send
 *  FIRST      tls_new, on the server's side            nothing yet              -
 *  HANDSHAKE  a first byte that begins a handshake     nothing yet              -
 *  OPEN       the handshake is over                    bytes                    bytes
 *  ENDED      close_notify, or FIN                     0: end of stream         bytes
 *  PLAIN      a first byte that is none of TLS         -EPROTO                  -
 *  FAILED     anything else; `error` says what         -EPROTO, or what recv said */
#ifndef INGEST_TLS_H
#define INGEST_TLS_H

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef struct {
    int (*read)(void *ssl, void *data, int size);
    int (*write)(void *ssl, const void *data, int size);
    int (*get_error)(const void *ssl, int result);
    int (*do_handshake)(void *ssl);
    int (*is_init_finished)(const void *ssl);
    int (*shutdown)(void *ssl);
    void (*free)(void *ssl);
    void (*clear_errors)(void);
    unsigned long (*peek_error)(void);
} tls_library;

enum { TLS_WANT_READ = 2, TLS_WANT_WRITE = 3, TLS_SYSCALL = 5, TLS_ZERO_RETURN = 6 }; /* of SSL_get_error */
enum { TLS_RECORD_HANDSHAKE = 22 };    /* RFC 8446, 5.1: the first byte that a TLS client sends */
enum { TLS_RECORD_SIZE_MAX = 16384 };  /* bytes of plain text in one record, likewise */

enum tls_state { TLS_FIRST = 0, TLS_HANDSHAKE, TLS_OPEN, TLS_ENDED, TLS_PLAIN, TLS_FAILED };

typedef struct {
    const tls_library *lib;
    void *ssl;
    int fd;
    uint8_t state;       /* tls_state */
    uint8_t handshaken;  /* once the handshake is over, also when the session failed later */
    uint8_t wants_write; /* the handshake goes on when the socket takes bytes */
    uint32_t error;      /* of OpenSSL, 0 when it was none */
    /* A record that the socket did not take whole. OpenSSL has to be given its bytes again, and the caller counts them
     * as sent: they are kept here. At most TLS_RECORD_SIZE_MAX. */
    uint8_t *held;
    uint32_t held_start, held_end;
} tls_session;

/* Takes over `ssl`, which has its socket `fd` already. NULL without memory. */
static inline tls_session *tls_new(const tls_library *lib, void *ssl, int fd, int is_server)
{
    tls_session *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->lib = lib;
    s->ssl = ssl;
    s->fd = fd;
    s->state = is_server ? TLS_FIRST : TLS_HANDSHAKE;
    return s;
}

/* The socket stays the caller's. */
static inline void tls_free(tls_session *s)
{
    if (!s)
        return;
    s->lib->free(s->ssl);
    free(s->held);
    free(s);
}

/* Bytes that were taken from the caller and not yet by the socket. */
static inline uint32_t tls_unsent(const tls_session *s) { return s ? s->held_end - s->held_start : 0; }
static inline int tls_in_handshake(const tls_session *s) { return s && !s->handshaken; }
/* The end, or a failure, is known and has yet to be received: the socket alone would not tell. */
static inline int tls_at_end(const tls_session *s) { return s && s->state > TLS_OPEN; }

static inline void tls_note_handshake(tls_session *s)
{
    if (s->state == TLS_HANDSHAKE && s->lib->is_init_finished(s->ssl)) {
        s->state = TLS_OPEN;
        s->handshaken = 1;
    }
}

/* What a call that gave `result` <= 0 means: -EAGAIN, 0 for the end of the stream, or another -errno, which is final. */
static inline ssize_t tls_result(tls_session *s, int result)
{
    int number = errno;
    switch (s->lib->get_error(s->ssl, result)) {
    case TLS_WANT_WRITE:
        s->wants_write = 1;
        return -EAGAIN;
    case TLS_WANT_READ:
        return -EAGAIN;
    case TLS_ZERO_RETURN:
        s->state = s->handshaken ? TLS_ENDED : TLS_FAILED;
        return s->handshaken ? 0 : -ECONNRESET;
    case TLS_SYSCALL:
        if (number == 0 && s->handshaken) {  /* FIN without close_notify, as OpenSSL before 3 says it */
            s->state = TLS_ENDED;
            return 0;
        }
        s->state = TLS_FAILED;
        return number ? -number : -ECONNRESET;
    default:
        s->error = (uint32_t)s->lib->peek_error();
        s->lib->clear_errors();  /* Python's ssl would take it for one of its own */
        s->state = TLS_FAILED;
        return -EPROTO;
    }
}

/* A client that speaks no TLS is found out by its first byte: OpenSSL's error would name a wrong version. */
static inline ssize_t tls_look_at_first(tls_session *s)
{
    uint8_t first;
    ssize_t n;
    while ((n = recv(s->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT)) < 0 && errno == EINTR)
        ;
    if (n < 0) {
        if (errno != EAGAIN)
            s->state = TLS_FAILED;
        return -errno;
    }
    if (n == 0)  /* whoever only looks whether the port is open has failed at nothing */
        s->state = TLS_ENDED;
    else
        s->state = first == TLS_RECORD_HANDSHAKE ? TLS_HANDSHAKE : TLS_PLAIN;
    return s->state == TLS_PLAIN ? -EPROTO : 0;
}

/* Like recv without waiting, and does the handshake: the number of bytes, 0 at the end of the stream, or -errno.
 * Fewer than `size` bytes mean that nothing more is there now, or tls_at_end. */
static inline ssize_t tls_receive(tls_session *s, uint8_t *buffer, size_t size)
{
    size_t have = 0;
    ssize_t result;
    if (s->state == TLS_FIRST && (result = tls_look_at_first(s)) < 0)
        return result;
    if (s->state == TLS_ENDED)
        return 0;
    if (s->state > TLS_ENDED)
        return -EPROTO;
    s->wants_write = 0;
    s->lib->clear_errors();
    while (have < size) {
        size_t wanted = size - have < INT_MAX ? size - have : INT_MAX;
        errno = 0;
        int n = s->lib->read(s->ssl, buffer + have, (int)wanted);
        if (n <= 0) {
            result = tls_result(s, n);
            tls_note_handshake(s);
            return have ? (ssize_t)have : result;
        }
        tls_note_handshake(s);
        have += (size_t)n;
    }
    return (ssize_t)have;
}

/* One record at most. The bytes that OpenSSL has taken, 0 when the socket takes none now, or -errno. */
static inline ssize_t tls_write(tls_session *s, const uint8_t *data, size_t size)
{
    errno = 0;
    int n = s->lib->write(s->ssl, data, (int)size);
    ssize_t result;
    if (n > 0)
        return n;
    result = tls_result(s, n);
    if (result == -EAGAIN)
        return 0;
    return result < 0 ? result : -EPIPE;
}

/* Sends what was held back. 1: nothing is left; 0: the socket takes no more now; or -errno. */
static inline int tls_flush(tls_session *s)
{
    s->lib->clear_errors();
    while (s->held_start < s->held_end) {
        ssize_t n = tls_write(s, s->held + s->held_start, s->held_end - s->held_start);
        if (n <= 0)
            return (int)n;
        s->held_start += (uint32_t)n;
    }
    s->held_start = s->held_end = 0;
    free(s->held);
    s->held = NULL;
    return 1;
}

/* Like send without waiting: how many bytes were taken (see tls_unsent), or -errno. */
static inline ssize_t tls_send(tls_session *s, const uint8_t *data, size_t size)
{
    size_t done = 0;
    int flushed = tls_flush(s);
    if (flushed <= 0)
        return flushed;
    while (done < size) {
        size_t part = size - done < TLS_RECORD_SIZE_MAX ? size - done : TLS_RECORD_SIZE_MAX;
        ssize_t n = tls_write(s, data + done, part);
        if (n < 0)
            return n;
        if (n == 0) {
            if (!(s->held = malloc(part)))
                return -ENOMEM;
            memcpy(s->held, data + done, part);
            s->held_end = (uint32_t)part;
            return (ssize_t)(done + part);
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* Tells the peer that nothing follows, as far as the socket takes that. */
static inline void tls_end(tls_session *s)
{
    if (s && s->handshaken && s->state != TLS_FAILED) {
        s->lib->clear_errors();
        s->lib->shutdown(s->ssl);
    }
}

#endif
