/* Faults at the n-th change of a file below a folder: a library to be preloaded (Linux).
 *
 * ABKD_FAULT_ROOT   the folder, as realpath gives it; without it nothing happens
 * ABKD_FAULT_KIND   kill: SIGKILL before the change; torn: half of a write, then SIGKILL; short: half of a write;
 *                   enospc, eio: the change fails; full: it and all that follow fail with ENOSPC
 * ABKD_FAULT_AT     n, counted from 1; the fault happens at the first change from the n-th on to which its kind applies
 * ABKD_FAULT_COUNT  file that is given the number of changes at the end
 * ABKD_FAULT_TRACE  file that is given every change, for power.py
 *
 * A change is a file made or opened to be emptied, a write, a truncation, a name given or removed, a folder made, an
 * fsync. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { NONE, KILL, TORN, SHORT, ENOSPC_ONCE, EIO_ONCE, FULL };
enum change { MAKE, WRITE, TRUNCATE, RENAME, REMOVE, SYNC };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static enum kind kind;
static long at, count;
static int struck, trace = -1;

static void put(const void *data, size_t length) {
    const char *rest = data;
    while (length > 0) {
        long n = syscall(SYS_write, trace, rest, length);
        if (n <= 0) abort();
        rest += n;
        length -= (size_t)n;
    }
}

static void record(const char *format, ...) {
    if (trace < 0) return;
    char line[3 * PATH_MAX];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    put(line, (size_t)n);
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("ABKD_FAULT_ROOT"), *what = getenv("ABKD_FAULT_KIND"), *n = getenv("ABKD_FAULT_AT");
    if (!folder) return;
    /* A program that this one starts is not part of the run. With this library it would overwrite the trace. */
    unsetenv("LD_PRELOAD");
    snprintf(root, sizeof root, "%s", folder);
    static const char *names[] = {"none", "kill", "torn", "short", "enospc", "eio", "full"};
    for (int i = 0; what && i < 7; i++)
        if (!strcmp(what, names[i])) kind = (enum kind)i;
    at = n ? atol(n) : 0;
    const char *path = getenv("ABKD_FAULT_TRACE");
    if (path) trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("ABKD_FAULT_COUNT");
    if (!path || !root[0]) return;
    char text[32];
    int n = snprintf(text, sizeof text, "%ld", count);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (syscall(SYS_write, fd, text, n) != n) abort();
    syscall(SYS_close, fd);
}

/* The absolute path of `path` in the open folder `fd`, if it is below the root. */
static int below(int fd, const char *path, char *whole) {
    if (!root[0] || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        char folder[PATH_MAX], name[64];
        ssize_t n;
        if (fd == AT_FDCWD) {
            n = readlink("/proc/self/cwd", folder, sizeof folder - 1);
        } else {
            snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
            n = readlink(name, folder, sizeof folder - 1);
        }
        if (n < 0) return 0;
        folder[n] = 0;
        if (path[0]) snprintf(whole, PATH_MAX, "%.2000s/%.2000s", folder, path);
        else snprintf(whole, PATH_MAX, "%s", folder);
    }
    size_t length = strlen(root);
    return !strncmp(whole, root, length) && (whole[length] == '/' || !whole[length]);
}

static int below_fd(int fd, char *whole) {
    return root[0] && below(fd, "", whole);
}

/* Counts a change. Returns 1 if it has to fail (errno is set), 2 if only half of it is to be written, else 0. */
static int strikes(enum change what) {
    count++;
    if (kind == NONE || count < at || (struck && kind != FULL)) return 0;
    int grows = what == MAKE || what == WRITE;
    switch (kind) {
    case KILL: kill(getpid(), SIGKILL); pause(); break;
    case TORN: case SHORT:
        if (what != WRITE) return 0;
        struck = 1;
        return 2;
    case ENOSPC_ONCE: case FULL:
        if (!grows) return 0;
        struck = 1;
        errno = ENOSPC;
        return 1;
    case EIO_ONCE:
        struck = 1;
        errno = EIO;
        return 1;
    default: break;
    }
    return 0;
}

static unsigned long inode(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : (unsigned long)found.st_ino;
}

static int opened(int folder, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    int changes = (flags & O_ACCMODE) != O_RDONLY && (flags & O_TMPFILE) != O_TMPFILE && (flags & (O_CREAT | O_TRUNC));
    if (!changes || !below(folder, path, whole)) return (int)syscall(SYS_openat, folder, path, flags, mode);
    pthread_mutex_lock(&mutex);
    struct stat found;
    int made = stat(whole, &found) != 0, fd = -1;
    if (!strikes(MAKE)) fd = (int)syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0) {
        if (made) record("C %lu %s\n", inode(fd), whole);
        else if (flags & O_TRUNC) record("T %lu 0\n", inode(fd));
    }
    pthread_mutex_unlock(&mutex);
    return fd;
}

#define MODE mode_t mode = 0; if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }
int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* Where the next byte of `fd` goes. */
static long long place(int fd) {
    if (fcntl(fd, F_GETFL) & O_APPEND) {
        struct stat found;
        return fstat(fd, &found) ? 0 : (long long)found.st_size;
    }
    return (long long)lseek(fd, 0, SEEK_CUR);
}

static ssize_t written(int fd, const void *data, size_t length, long long offset) {
    char whole[PATH_MAX];
    if (!below_fd(fd, whole))
        return offset < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, offset);
    pthread_mutex_lock(&mutex);
    int fault = strikes(WRITE);
    ssize_t n = -1;
    if (fault != 1) {
        size_t part = fault == 2 && length > 1 ? length / 2 : length;
        long long start = offset < 0 ? place(fd) : offset;
        n = offset < 0 ? syscall(SYS_write, fd, data, part) : syscall(SYS_pwrite64, fd, data, part, offset);
        if (fault == 2 && kind == TORN) { kill(getpid(), SIGKILL); pause(); }
        if (n > 0 && trace >= 0) {
            record("W %lu %lld %ld\n", inode(fd), start, (long)n);
            put(data, (size_t)n);
        }
    }
    pthread_mutex_unlock(&mutex);
    return n;
}

ssize_t write(int fd, const void *data, size_t length) { return written(fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return written(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return written(fd, data, length, offset); }
ssize_t writev(int fd, const struct iovec *parts, int n) {
    char whole[PATH_MAX];
    if (!below_fd(fd, whole)) return syscall(SYS_writev, fd, parts, n);
    for (int i = 0; i < n; i++) /* fewer bytes than asked for are allowed */
        if (parts[i].iov_len) return written(fd, parts[i].iov_base, parts[i].iov_len, -1);
    return 0;
}

static int truncated(int fd, long long length) {
    char whole[PATH_MAX];
    if (!below_fd(fd, whole)) return (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&mutex);
    int result = strikes(TRUNCATE) == 1 ? -1 : (int)syscall(SYS_ftruncate, fd, length);
    if (!result) record("T %lu %lld\n", inode(fd), length);
    pthread_mutex_unlock(&mutex);
    return result;
}
int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

int rename(const char *from, const char *to) {
    char old[PATH_MAX], new[PATH_MAX];
    if (!below(AT_FDCWD, from, old) || !below(AT_FDCWD, to, new)) return (int)syscall(SYS_rename, from, to);
    pthread_mutex_lock(&mutex);
    int result = strikes(RENAME) == 1 ? -1 : (int)syscall(SYS_rename, from, to);
    if (!result) record("R %s\t%s\n", old, new);
    pthread_mutex_unlock(&mutex);
    return result;
}

static int removed(int folder, const char *path, int flags) {
    char whole[PATH_MAX];
    if (!below(folder, path, whole)) return (int)syscall(SYS_unlinkat, folder, path, flags);
    pthread_mutex_lock(&mutex);
    int result = strikes(REMOVE) == 1 ? -1 : (int)syscall(SYS_unlinkat, folder, path, flags);
    if (!result) record("U %s\n", whole);
    pthread_mutex_unlock(&mutex);
    return result;
}
int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }

int mkdir(const char *path, mode_t mode) {
    char whole[PATH_MAX];
    if (!below(AT_FDCWD, path, whole)) return (int)syscall(SYS_mkdir, path, mode);
    pthread_mutex_lock(&mutex);
    int result = strikes(MAKE) == 1 ? -1 : (int)syscall(SYS_mkdir, path, mode);
    if (!result) record("M %s\n", whole);
    pthread_mutex_unlock(&mutex);
    return result;
}

static int synced(int fd) {
    char whole[PATH_MAX];
    if (!below_fd(fd, whole)) return (int)syscall(SYS_fsync, fd);
    pthread_mutex_lock(&mutex);
    struct stat found;
    int result = strikes(SYNC) == 1 ? -1 : (int)syscall(SYS_fsync, fd);
    if (!result && !fstat(fd, &found)) {
        if (S_ISDIR(found.st_mode)) record("D %s\n", whole);
        else record("F %lu\n", (unsigned long)found.st_ino);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}
int fsync(int fd) { return synced(fd); }
int fdatasync(int fd) { return synced(fd); }
