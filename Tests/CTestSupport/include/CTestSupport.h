/* What the tests need of Linux and Swift cannot call or is too slow at without optimization: variadic calls,
 * macros, a thread of another user, a mapping that may fault, and loops over bytes. */
#ifndef CTESTSUPPORT_H
#define CTESTSUPPORT_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/xattr.h>

int ts_openat(int directory, const char *path, int flags, uint32_t mode);
ssize_t ts_getdents64(int directory, void *buffer, size_t size);
int ts_utimensat(const char *path, int64_t atime_s, int64_t atime_ns, int64_t mtime_s, int64_t mtime_ns);
extern const int64_t ts_utime_now;
extern const int64_t ts_utime_omit;
uint64_t ts_makedev(uint32_t major, uint32_t minor);
uint32_t ts_minor(uint64_t device);
int ts_bind_socket(const char *path);

/* fcntl(2) with an open file description lock (F_OFD_SETLK) over a range; `type` is F_RDLCK, F_WRLCK or F_UNLCK. */
int ts_ofd_lock(int descriptor, int type, int64_t start, int64_t length);

/* Calls `body` in a thread of its own: with a umask of its own and, where `user` is not 0, as that user with that
 * group and these supplementary ones. Returns 0, or -1 when the thread could not become so. */
int ts_as_user(uint32_t user, uint32_t group, const uint32_t *groups, size_t group_count, uint32_t mask,
	       void (*body)(void *), void *context);
/* A thread that calls `body`, to be joined once; NULL when none could be made. */
void *ts_thread(void (*body)(void *), void *context);
/* Sends the thread, which has not been joined, a signal that interrupts its system call. */
void ts_interrupt(void *thread);
void ts_join(void *thread);

/* Copies `size` bytes out of a mapping; -1 when that faults (SIGBUS), 0 otherwise. */
int ts_read_mapping(const void *mapping, void *buffer, size_t size);
/* Copies `size` bytes into a mapping; -1 when that faults. */
int ts_write_mapping(void *mapping, const void *bytes, size_t size);

/* A 64-bit hash of `size` bytes, going on from `hash` (0 at first). */
uint64_t ts_hash(uint64_t hash, const void *bytes, size_t size);
/* Fills with bytes that follow from `seed`; no byte is 0, so that data can be told from holes. */
void ts_fill(void *bytes, size_t size, uint64_t seed);

/* Fills with a word, over and over from the first byte; a last piece may be shorter. */
void ts_fill_word(void *bytes, size_t size, uint64_t word);
/* Where bytes first differ from what ts_fill_word would have put there; -1 where nowhere. */
ssize_t ts_word_mismatch(const void *bytes, size_t size, uint64_t word);

/* Waits until `*word` is not `expected` any more, is woken, or the time is over. The word may be shared by processes. */
void ts_futex_wait(const void *word, uint32_t expected, int milliseconds);
void ts_futex_wake(const void *word);
/* Waits until a child has ended, without reaping it, or the time is over. -1 and errno. */
int ts_await_end(pid_t child, int milliseconds);
/* The calling process is killed when its parent ends. */
void ts_die_with_parent(void);

/* statx(2), whose name Swift takes for the structure's. */
int ts_statx(int directory, const char *path, int flags, unsigned int mask, struct statx *status);
/* ioctl(2). */
int ts_ioctl(int descriptor, unsigned long request, void *argument);
/* A file handle, as name_to_handle_at(2) gives it. */
struct ts_handle {
	uint32_t size;
	int32_t type;
	uint8_t bytes[128];
};
int ts_name_to_handle_at(int directory, const char *path, struct ts_handle *handle, int flags);
int ts_open_by_handle_at(int mount, const struct ts_handle *handle, int flags);
/* A Unix socket that listens at a path, is connected to the one that does, or was accepted: the descriptor, or -1 and errno. */
int ts_listen(const char *path);
int ts_connect(const char *path);
int ts_accept(int listener);
/* A child that fexecve(2)s the descriptor, with no arguments: its exit code, or -1 and errno where it could not. */
int ts_execute(int descriptor);
/* Asks for dnotify's signals of a directory, for the calling thread (F_NOTIFY with `events`). -1 and errno. */
int ts_notify(int directory, int events);
/* Whether such a signal comes within the time; takes it. */
int ts_await_notification(int milliseconds);

/* Reads and writes that go on while the caller does other things, by raw system calls: AIO (io_submit) or io_uring. */
enum ts_async_kind { TS_ASYNC_AIO, TS_ASYNC_URING };
struct ts_async;
/* NULL and errno. ENOSYS, EPERM: this machine has none. */
struct ts_async *ts_async_open(int kind, unsigned int depth);
/* pwrite(2) of bytes that must stay as they are until `ts_async_wait` returns their tag. -1 and errno. */
int ts_async_write(struct ts_async *async, int descriptor, const void *bytes, size_t size, int64_t offset, uint64_t tag);
/* pread(2), the same way. */
int ts_async_read(struct ts_async *async, int descriptor, void *bytes, size_t size, int64_t offset, uint64_t tag);
/* Waits for one of them to end: its tag, and its result as of pwrite(2) or pread(2), or -errno. -1 and errno. */
int ts_async_wait(struct ts_async *async, uint64_t *tag, int64_t *result);
void ts_async_close(struct ts_async *async);

/* Sends `size` bytes to the Unix socket at `path`, and reads the answer until the end, at most a second between
 * pieces. The number of bytes in `answer`, or -1. */
ssize_t ts_talk(const char *path, const void *bytes, size_t size, void *answer, size_t room);
/* A Unix datagram socket bound to `path`, or -1 and errno. */
int ts_datagram_socket(const char *path);
/* The next datagram's length; 0 where none comes in time, -1 and errno. */
ssize_t ts_receive(int socket, void *bytes, size_t room, int milliseconds);
/* f_type of statfs(2); -1 and errno. */
long ts_file_system_type(const char *path);

/* A page whose first reader waits, a system call too, until ts_fill_page: userfaultfd(2). NULL and errno on failure;
 * `*faults` is the descriptor to give to the others, which close it. */
void *ts_waiting_page(int *faults);
/* Waits until somebody waits for the page, `milliseconds` at most: 1, or 0 when the time is over. */
int ts_await_fault(int faults, int milliseconds);
/* Fills the page with `byte` and lets its readers go on. */
int ts_fill_page(int faults, void *page, int byte);

#endif
