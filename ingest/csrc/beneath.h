/* Opening files below a directory without ever following a symbolic link: docs/format.md. */
#ifndef INGEST_BENEATH_H
#define INGEST_BENEATH_H

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Walks to the directory of `path` component by component; makes missing ones (0700) if `make`. Returns its
 * descriptor (the caller closes it) and sets `*name` to the last component; or -1 with errno. */
static int directory_beneath(int root, const char *path, int make, const char **name)
{
    int dir = dup(root);
    const char *p = path;
    for (const char *slash; dir >= 0 && (slash = strchr(p, '/')) != NULL; p = slash + 1) {
        char component[256];
        size_t n = (size_t)(slash - p);
        if (n == 0 || n >= sizeof component) {
            close(dir);
            errno = EINVAL;
            return -1;
        }
        memcpy(component, p, n);
        component[n] = 0;
        int made = make ? mkdirat(dir, component, 0700) : 0;
        while (made < 0 && errno == EINTR)
            made = mkdirat(dir, component, 0700);
        if (made < 0 && errno != EEXIST) {
            int e = errno;
            close(dir);
            errno = e;
            return -1;
        }
        int next;
        do
            next = openat(dir, component, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        while (next < 0 && errno == EINTR);
        int e = errno;
        close(dir);
        errno = e;
        dir = next;
    }
    *name = p;
    return dir;
}

/* openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; where the kernel lacks it (before 5.6, some sandboxes), the walk. */
static int open_beneath(int root, const char *path, int flags, unsigned mode)
{
    struct open_how how;
    memset(&how, 0, sizeof how);
    how.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    how.mode = (flags & O_CREAT) ? mode : 0;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
    int fd;
    do /* a file system that waits for somebody else may be interrupted */
        fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    while (fd < 0 && errno == EINTR);
    if (fd >= 0 || (errno != ENOSYS && errno != EPERM))
        return fd;
    const char *name;
    int dir = directory_beneath(root, path, 0, &name);
    if (dir < 0)
        return -1;
    do
        fd = openat(dir, name, (int)how.flags, mode);
    while (fd < 0 && errno == EINTR);
    int e = errno;
    close(dir);
    errno = e;
    return fd;
}

#endif
