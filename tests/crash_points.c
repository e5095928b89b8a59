/* Counts the operations on files below one folder, and crashes or refuses the k-th of them.
 *
 * It is preloaded into the process of crash_points.py, whose children arm it through ctypes. Python
 * and the native writers (safetensors, tokenizers) change files through these functions of the C
 * library. It does not see writes through mmap, what stdio writes (fopen), and bare system calls.
 * For 64-bit Linux, where open64 is open under a second name, and so on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL, HALVE, FULL };
enum verdict { DO, REFUSE, LAST }; /* LAST: do it (half of a write), then end the process */

static char folder[PATH_MAX];
static size_t folder_length; /* 0: not armed */
static long operation, crash_at;
static enum mode mode;
static int log_descriptor;

/* Count operations below `path` (absolute, without symbolic links) from 1, and write a line for each
 * to the descriptor `log`. at: the operation at which `how` applies, or 0. */
void crash_arm(const char *path, long at, int how, int log) {
    folder_length = strlen(strcpy(folder, path));
    operation = 0;
    crash_at = at;
    mode = how;
    log_descriptor = log;
}

static void die(void) {
    for (;;)
        kill(getpid(), SIGKILL);
}

/* Whether `path`, relative to the folder `fd`, lies below our folder. Without a path, `fd` is the
 * file itself. `whole` becomes the absolute path. */
static int ours(int fd, const char *path, char whole[2 * PATH_MAX]) {
    char link[64];
    ssize_t n = 0;
    if (!folder_length)
        return 0;
    if (!path || path[0] != '/') {
        snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
        n = readlink(link, whole, PATH_MAX - 1);
        if (n < 0)
            return 0;
    }
    snprintf(whole + n, PATH_MAX, "%s%s", n && path ? "/" : "", path ? path : "");
    /* The path of a deleted file ends in " (deleted)". */
    return !strncmp(whole, folder, folder_length) && strchr("/ ", whole[folder_length]);
}

/* Count the operation. needs_room: whether a full disk refuses it. */
static enum verdict before(const char *kind, int needs_room, int fd, const char *path) {
    char whole[2 * PATH_MAX];
    if (!ours(fd, path, whole))
        return DO;
    long now = __atomic_add_fetch(&operation, 1, __ATOMIC_SEQ_CST);
    dprintf(log_descriptor, "%c %s %s\n", needs_room ? '+' : '-', kind, whole + folder_length);
    if (mode == FULL && crash_at && now >= crash_at && needs_room)
        return REFUSE;
    if (mode == KILL && now == crash_at)
        die();
    return mode == HALVE && now == crash_at ? LAST : DO;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define SAME(other, name) extern __typeof__(name) other __attribute__((alias(#name)))
/* The body of a function around `call`, which may look at `verdict`. */
#define AROUND(kind, needs_room, fd, path, call)               \
    enum verdict verdict = before(kind, needs_room, fd, path); \
    if (verdict == REFUSE)                                     \
        return errno = ENOSPC, -1;                             \
    __typeof__(call) result = call;                            \
    if (verdict == LAST)                                       \
        die();                                                 \
    return result
#define HALF(size) (verdict == LAST ? (size) / 2 : (size))

int openat(int at, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t permissions = va_arg(rest, mode_t); /* garbage, and unused, if no file is created */
    va_end(rest);
    if (!(flags & (O_CREAT | O_TRUNC))) /* changes nothing yet */
        return REAL(openat)(at, path, flags, permissions);
    int is_new = faccessat(at, path, F_OK, AT_SYMLINK_NOFOLLOW);
    AROUND("open", is_new, at, path, REAL(openat)(at, path, flags, permissions));
}
SAME(openat64, openat);

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t permissions = va_arg(rest, mode_t);
    va_end(rest);
    return openat(AT_FDCWD, path, flags, permissions);
}
SAME(open64, open);
int creat(const char *path, mode_t permissions) {
    return openat(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, permissions);
}
SAME(creat64, creat);
ssize_t write(int fd, const void *data, size_t n) {
    AROUND("write", 1, fd, NULL, REAL(write)(fd, data, HALF(n)));
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    AROUND("write", 1, fd, NULL, REAL(pwrite)(fd, data, HALF(n), at));
}
SAME(pwrite64, pwrite);

static ssize_t first_half(int fd, const struct iovec *parts, int n, off_t at) {
    size_t left = 0;
    for (int i = 0; i < n; i++)
        left += parts[i].iov_len;
    left /= 2;
    for (; left; parts++) {
        size_t size = parts->iov_len < left ? parts->iov_len : left;
        REAL(pwrite)(fd, parts->iov_base, size, at);
        at += size;
        left -= size;
    }
    return 0;
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    AROUND("write", 1, fd, NULL, verdict == LAST ? first_half(fd, parts, n, at)
                                                 : REAL(pwritev)(fd, parts, n, at));
}
SAME(pwritev64, pwritev);
ssize_t writev(int fd, const struct iovec *parts, int n) {
    AROUND("write", 1, fd, NULL, verdict == LAST ? first_half(fd, parts, n, lseek(fd, 0, SEEK_CUR))
                                                 : REAL(writev)(fd, parts, n));
}
ssize_t sendfile(int to, int from, off_t *at, size_t n) {
    AROUND("write", 1, to, NULL, REAL(sendfile)(to, from, at, HALF(n)));
}
SAME(sendfile64, sendfile);
ssize_t copy_file_range(int from, off_t *at, int to, off_t *to_at, size_t n, unsigned flags) {
    AROUND("write", 1, to, NULL, REAL(copy_file_range)(from, at, to, to_at, HALF(n), flags));
}
int ftruncate(int fd, off_t size) { AROUND("truncate", 0, fd, NULL, REAL(ftruncate)(fd, size)); }
SAME(ftruncate64, ftruncate);

/* An operation from one path to another, of which one or both are below our folder. */
#define TWO_PATHS(kind, needs_room, from, old, to, new, call) \
    char whole[2 * PATH_MAX];                                 \
    int into = ours(to, new, whole);                          \
    AROUND(kind, needs_room, into ? to : from, into ? new : old, call)

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    TWO_PATHS("rename", 0, from, old, to, new, REAL(renameat2)(from, old, to, new, flags));
}
int renameat(int from, const char *old, int to, const char *new) {
    return renameat2(from, old, to, new, 0);
}
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    TWO_PATHS("link", 1, from, old, to, new, REAL(linkat)(from, old, to, new, flags));
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
int symlinkat(const char *target, int at, const char *path) {
    AROUND("link", 1, at, path, REAL(symlinkat)(target, at, path));
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }
int unlinkat(int at, const char *path, int flags) {
    AROUND(flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0, at, path, REAL(unlinkat)(at, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int at, const char *path, mode_t permissions) {
    AROUND("mkdir", 1, at, path, REAL(mkdirat)(at, path, permissions));
}
int mkdir(const char *path, mode_t permissions) { return mkdirat(AT_FDCWD, path, permissions); }
int fchmodat(int at, const char *path, mode_t permissions, int flags) {
    AROUND("chmod", 0, at, path, REAL(fchmodat)(at, path, permissions, flags));
}
int chmod(const char *path, mode_t permissions) { return fchmodat(AT_FDCWD, path, permissions, 0); }
int fchmod(int fd, mode_t permissions) {
    AROUND("chmod", 0, fd, NULL, REAL(fchmod)(fd, permissions));
}

/* Only counted: a kill loses nothing that the system has, and waiting for the disk takes long. */
int fsync(int fd) {
    char whole[2 * PATH_MAX];
    AROUND("fsync", 0, fd, NULL, ours(fd, NULL, whole) ? 0 : REAL(fsync)(fd));
}
SAME(fdatasync, fsync);
