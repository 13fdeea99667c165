/* Loaded (LD_PRELOAD) into a server: calls of one kind, on files below one directory, of one of its processes, fail.
 *
 * Which ones says a file that is mapped by all processes of the server and by who drives them: `struct control`, named to
 * follow_control() before the fork that makes the server. A failing call does nothing and returns its error; a short one really does the first
 * part of what it was asked for. Calls that a library makes by syscall() are seen too; those inside of libc are not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define SHORT (-1)

struct control {
    uint32_t armed;
    int32_t error;     /* an errno, or SHORT */
    uint64_t when;     /* the call that fails, counted from 1 */
    uint32_t onward;   /* all after it fail too */
    uint32_t unused;
    uint64_t count;    /* calls seen while armed */
    uint64_t struck;   /* calls that failed */
    char call[24];
    char role[16];     /* the start of the process's name */
    char root[256];    /* only files below it; empty for sockets */
};

static struct control *control;

/* From now on this process, and those that it forks, do what the file at `path` says; NULL: no call fails any more.
 * Returns 0 or an errno. */
int follow_control(const char *path)
{
    if (control)
        munmap(control, sizeof *control);
    control = NULL;
    if (!path)
        return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = map == MAP_FAILED ? errno : 0;
    syscall(SYS_close, fd);
    if (!error)
        control = map;
    return error;
}

/* The name of the process, not of the thread. */
static int in_role(void)
{
    char name[32] = "";
    int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/comm", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    long n = syscall(SYS_read, fd, name, sizeof name - 1);
    syscall(SYS_close, fd);
    return n > 0 && strncmp(name, control->role, strlen(control->role)) == 0;
}

static int below_root(const char *path)
{
    return strncmp(path, control->root, strlen(control->root)) == 0;
}

static int fd_below_root(int fd)
{
    char link[32], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (n < 0)
        return 0;
    path[n] = 0;
    return below_root(path);
}

/* 0: go on. Else an errno, or SHORT. `path` may be NULL: then it is `fd` that counts. */
static int fault(const char *call, int fd, const char *path)
{
    if (!control || !__atomic_load_n(&control->armed, __ATOMIC_ACQUIRE) || strcmp(call, control->call) != 0)
        return 0;
    int saved = errno;
    int ours = in_role();
    if (ours && control->root[0])
        ours = path && path[0] == '/' ? below_root(path) : fd_below_root(fd);
    errno = saved;
    if (!ours)
        return 0;
    uint64_t number = __atomic_add_fetch(&control->count, 1, __ATOMIC_ACQ_REL);
    if (number != control->when && !(control->onward && number > control->when))
        return 0;
    __atomic_add_fetch(&control->struck, 1, __ATOMIC_ACQ_REL);
    return control->error;
}

/* How much a short call of `size` bytes does: past the page cache whole blocks, as a kernel does. At least 1. */
static size_t part(int fd, size_t size)
{
    size_t half = size > 8192 ? size / 2 / 4096 * 4096 : size / 2;
    if (size <= 8192 && (fcntl(fd, F_GETFL) & O_DIRECT))
        half = size > 4096 ? 4096 : size;
    return half ? half : size;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
    real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define FAIL(call, fd, path) \
    do { \
        int error_ = fault(call, fd, path); \
        if (error_ > 0) { \
            errno = error_; \
            return -1; \
        } \
    } while (0)

/* Fails, or cuts `size` short. */
#define CUT(call, fd, size) \
    do { \
        int error_ = fault(call, fd, NULL); \
        if (error_ > 0) { \
            errno = error_; \
            return -1; \
        } \
        if (error_ == SHORT) \
            size = part(fd, size); \
    } while (0)

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, last); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

#define OPENS(name, dir) \
    REAL(name); \
    FAIL("openat", dir, path)

#define FAILS(type, name, call, parameters, arguments, fd, path) \
    type name parameters \
    { \
        REAL(name); \
        FAIL(call, fd, path); \
        return real arguments; \
    }

#define IS_CUT(name, call, parameters, arguments) \
    ssize_t name parameters \
    { \
        REAL(name); \
        CUT(call, fd, size); \
        return real arguments; \
    }

int open(const char *path, int flags, ...)
{
    MODE(flags, flags)
    OPENS(open, AT_FDCWD);
    return real(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE(flags, flags)
    OPENS(open64, AT_FDCWD);
    return real(path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
    MODE(flags, flags)
    OPENS(openat, dir);
    return real(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
    MODE(flags, flags)
    OPENS(openat64, dir);
    return real(dir, path, flags, mode);
}

/* clang-format off */
FAILS(int, dup, "dup", (int fd), (fd), fd, NULL)
FAILS(int, mkdirat, "mkdirat", (int dir, const char *path, mode_t mode), (dir, path, mode), dir, path)
FAILS(int, unlink, "unlink", (const char *path), (path), AT_FDCWD, path)
FAILS(int, unlinkat, "unlink", (int dir, const char *path, int flags), (dir, path, flags), dir, path)
FAILS(int, renameat, "renameat", (int from, const char *old, int to, const char *new), (from, old, to, new), to, new)
FAILS(int, linkat, "linkat", (int from, const char *old, int to, const char *new, int flags), (from, old, to, new, flags), to, new)

IS_CUT(pwrite, "pwrite", (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
IS_CUT(pwrite64, "pwrite", (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
IS_CUT(write, "write", (int fd, const void *data, size_t size), (fd, data, size))
IS_CUT(pread, "pread", (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
IS_CUT(pread64, "pread", (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
IS_CUT(read, "read", (int fd, void *data, size_t size), (fd, data, size))
IS_CUT(send, "send", (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
IS_CUT(recv, "recv", (int fd, void *data, size_t size, int flags), (fd, data, size, flags))
FAILS(ssize_t, preadv, "pread", (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at), fd, NULL)
FAILS(ssize_t, preadv64, "pread", (int fd, const struct iovec *parts, int n, off64_t at), (fd, parts, n, at), fd, NULL)
FAILS(int, accept4, "accept4", (int fd, struct sockaddr *name, socklen_t *size, int flags), (fd, name, size, flags), fd, NULL)

FAILS(int, fsync, "fsync", (int fd), (fd), fd, NULL)
FAILS(int, fdatasync, "fdatasync", (int fd), (fd), fd, NULL)
FAILS(int, syncfs, "syncfs", (int fd), (fd), fd, NULL)
FAILS(int, sync_file_range, "sync_file_range", (int fd, off64_t from, off64_t size, unsigned flags), (fd, from, size, flags), fd, NULL)
FAILS(int, fallocate, "fallocate", (int fd, int mode, off_t from, off_t size), (fd, mode, from, size), fd, NULL)
FAILS(int, fallocate64, "fallocate", (int fd, int mode, off64_t from, off64_t size), (fd, mode, from, size), fd, NULL)
FAILS(int, ftruncate, "ftruncate", (int fd, off_t size), (fd, size), fd, NULL)
FAILS(int, ftruncate64, "ftruncate", (int fd, off64_t size), (fd, size), fd, NULL)
FAILS(int, fsetxattr, "fsetxattr", (int fd, const char *name, const void *value, size_t size, int flags), (fd, name, value, size, flags), fd, NULL)
FAILS(ssize_t, fgetxattr, "fgetxattr", (int fd, const char *name, void *value, size_t size), (fd, name, value, size), fd, NULL)
FAILS(int, fstat, "fstat", (int fd, struct stat *found), (fd, found), fd, NULL)
FAILS(int, fstat64, "fstat", (int fd, struct stat64 *found), (fd, found), fd, NULL)
FAILS(int, fstatvfs, "statvfs", (int fd, struct statvfs *found), (fd, found), fd, NULL)
FAILS(int, fstatvfs64, "statvfs", (int fd, struct statvfs64 *found), (fd, found), fd, NULL)
FAILS(int, statvfs, "statvfs", (const char *path, struct statvfs *found), (path, found), AT_FDCWD, path)
FAILS(int, statvfs64, "statvfs", (const char *path, struct statvfs64 *found), (path, found), AT_FDCWD, path)
/* clang-format on */

long syscall(long number, ...)
{
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    static long (*real)(long, ...);
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_openat2)
        FAIL("openat2", (int)a[0], (const char *)a[1]);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
