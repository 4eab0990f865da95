/* The Linux calls that Swift cannot express: variadic functions, flexible array members, macros that
 * are casts, and thread-local storage. Every function returns what the call of its name returns and
 * sets errno as it does. */
#ifndef CLINUX_H
#define CLINUX_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/xattr.h>

extern const long cl_utime_omit;
extern const long cl_utime_now;

int cl_openat(int directory, const char *path, int flags, uint32_t mode);

/* What statx(2) tells, in plain integers: statx is a structure and a function of one name. */
struct cl_time {
	int64_t seconds;
	uint32_t nanoseconds;
};
struct cl_status {
	uint64_t device, inode, special_device;
	uint32_t mode, links, user, group;
	int64_t size, blocks;
	int32_t block_size;
	uint32_t knows_birth;
	struct cl_time accessed, modified, changed, birth;
};
int cl_statx(int directory, const char *path, int flags, struct cl_status *status);
/* The type that fstatfs(2) tells. */
int cl_file_system_type(int descriptor, uint32_t *type);
/* 1 where what `descriptor` refers to is immutable or append-only, else 0; -1 as statx(2). */
int cl_is_protected(int descriptor);

/* name_to_handle_at(2) and open_by_handle_at(2) with the handle's bytes apart from its header.
 * `*length` is the room in `bytes` before the call, and what the handle needs after it. */
int cl_name_to_handle_at(int directory, const char *path, uint8_t *bytes, uint32_t *length, int32_t *type,
			 int flags);
int cl_open_by_handle_at(int mount, const uint8_t *bytes, uint32_t length, int32_t type, int flags);

/* readlinkat(2) of what `descriptor` refers to. */
ssize_t cl_readlink(int descriptor, void *buffer, size_t size);

ssize_t cl_getdents64(int directory, void *buffer, size_t size);

/* ioctl(FICLONERANGE): shares `length` bytes of `source` with `target`. */
int cl_clone_range(int source, uint64_t source_offset, uint64_t length, int target, uint64_t target_offset);

/* The file system user and group of the calling thread. The effective capabilities become
 * `effective`, as far as they are permitted, since changing the user from 0 clears those that rule files. */
int cl_assume_user(uint32_t user, uint32_t group, uint64_t effective);
/* The capabilities that the calling thread is permitted, a bit each. */
uint64_t cl_permitted_capabilities(void);
/* Gives up, for good, capability number `capability`. */
int cl_drop_capability(unsigned int capability);

/* A working directory and umask of the calling thread's own: unshare(CLONE_FS). */
int cl_unshare_fs(void);

/* Thread-local state of a worker; all zero at first. */
struct cl_worker {
	void *buffer;		/* reused for payloads; freed when the thread ends */
	size_t buffer_size;
	uint32_t user;		/* what cl_assume_user was called with last */
	uint32_t group;
	uint64_t effective;	/* the capabilities set last */
	uint32_t mask;		/* the umask set last */
	int assumed;		/* whether user, group and mask are valid */
	unsigned int slot;	/* the worker's slot of the gate, plus one */
	void *intake;		/* what the FUSE session keeps for this worker; NULL in other threads */
	int kills_privileges;	/* whether the request in hand takes set-id bits away; -1: the kernel does not say */
};
struct cl_worker *cl_this_worker(void);
/* The calling thread's buffer, grown to at least `size` bytes, aligned to pages; NULL where there is no memory. */
void *cl_worker_buffer(size_t size);

/* An epoll that watches one descriptor for something to read once it is armed, and tells it once: until it is armed again. */
int cl_poller(void);
/* Waits for that: 1, or -1 and EINTR. Of several threads that wait, the last one that came is woken. */
int cl_poller_wait(int poller);
/* Neither tells of errors, nor touches errno: arming fails where there is nothing to watch any more, or no memory. */
void cl_poller_arm(int poller, int descriptor);
/* Takes back what arming asked for, where nobody was woken yet. */
void cl_poller_disarm(int poller, int descriptor);
/* Looks at a descriptor again and again, without sleeping, until it has something to read (1), the time is over (0), or a
   signal has come (-1 and EINTR). */
int cl_poll_for(int descriptor, long nanoseconds);

void cl_syslog(int priority, const char *message);

/* Unix stream sockets: the address structures are unions to Swift. ENAMETOOLONG where the path does not fit. */
int cl_unix_socket(void);
int cl_unix_bind(int socket, const char *path);
int cl_unix_connect(int socket, const char *path);
int cl_unix_accept(int socket);

/* The peer's user of a connected Unix socket: getsockopt(SO_PEERCRED). */
int cl_peer_user(int socket, uint32_t *user, int32_t *process);

/* The calling thread's number, and a signal to the thread of that number in this process. */
int32_t cl_thread_number(void);
int cl_signal_thread(int32_t thread, int signal);

/* futex(2): waits while the word at `address` has that value; wakes all who wait for it. */
void cl_futex_wait(void *address, uint32_t value);
void cl_futex_wake(void *address);

/* sync_file_range(2) over the whole file: writes its dirty pages and waits for them. */
int cl_flush(int descriptor);

/* Where a path leads, without a request to the file system: statx(2) with AT_STATX_DONT_SYNC. `mount` is 0
 * where the kernel does not tell it. `mode` holds the kind of file only. */
struct cl_place {
	uint64_t device, inode, mount;
	uint32_t device_major, device_minor;	/* of `device` */
	uint32_t mode;
};
int cl_find_place(int directory, const char *path, int flags, struct cl_place *place);

/* The number of the mount on which `descriptor` was opened: STATX_MNT_ID_UNIQUE, which is never used again until the
 * machine starts anew; before Linux 6.8 STATX_MNT_ID, which may be; 0 where the kernel tells neither. */
int cl_mount_number(int descriptor, uint64_t *number);

/* A copy of the mount that `directory` lies in, with `directory` as its root, which is mounted nowhere:
 * open_tree(2) with OPEN_TREE_CLONE. It lasts as long as the descriptor. */
int cl_clone_mount(int directory);

/* kcmp(2): 0 where two threads share what `resource` says, another number where not. */
enum { CL_SAME_MEMORY = 1, CL_SAME_DESCRIPTORS = 2, CL_SAME_DIRECTORIES = 3 };
int cl_compare_threads(int32_t one, int32_t other, int resource);

/* A fanotify group that tells changes by file handles, directory and name: fanotify_init(2). It does not block. */
int cl_change_group(int unlimited_queue);
/* fanotify_mark(2): every change of the file system that `directory` lies in. */
int cl_watch_file_system(int group, int directory);
/* fanotify_mark(2): but not what is written by way of the mount that `directory` lies in. */
int cl_ignore_writes_through(int group, int directory);

enum {
	CL_CHANGED_DATA = 1, CL_CHANGED_ATTRIBUTES = 2, CL_CHANGED_ENTRY = 4,
	CL_MOVED_DIRECTORY = 8,	/* beside CL_CHANGED_ENTRY */
	CL_LOST_CHANGES = 16,	/* the queue was full */
};
struct cl_handle {
	const uint8_t *bytes;	/* NULL: there is none */
	uint32_t length;
	int32_t type;
};
struct cl_change {
	uint32_t kinds;
	int32_t process;	/* 0: one that cannot be seen from here */
	struct cl_handle directory, object;
	const char *name;	/* of the entry in `directory`; NULL: none */
};
/* Takes one event from those that read(2) of the group gave: its length, 0 where there is none. What `change`
 * refers to lies in `events`. */
size_t cl_next_change(const void *events, size_t size, struct cl_change *change);

/* Descriptors that are sent over a socket with bytes, and received with them: at most so many at once. The kernel closes those
   that the receiver has no room for. */
enum { CL_DESCRIPTORS_MAX = 4 };
ssize_t cl_send_descriptors(int socket, const void *bytes, size_t size, const int *descriptors, int count);
/* As recv(2); `descriptors` has room for CL_DESCRIPTORS_MAX, of which `count` came. They close on exec. */
ssize_t cl_receive_descriptors(int socket, void *buffer, size_t size, int *descriptors, int *count);
/* A descriptor that polls readable once `process` has ended: pidfd_open(2). */
int cl_pidfd_open(int32_t process);

/* Memory that is not used any more goes back to the system from now on: mallopt(3). Blocks of `bytes` and more are
 * mapped by themselves, whatever was freed before, and so much is left free at the heap's end at most. */
void cl_return_memory(int bytes);

/* The CRC-32C of `length` bytes; `before` is that of those before them, 0 at first. The second never uses the
 * processor's instruction: so that it can be tested on any machine. */
uint32_t cl_crc32c(uint32_t before, const void *bytes, size_t length);
uint32_t cl_crc32c_portable(uint32_t before, const void *bytes, size_t length);

#include "CLinuxProcess.h"
/* From now on this thread, and the threads and processes that it makes, never wait in the kernel for memory that only
 * file systems can free, their own among them: prctl(2), PR_SET_IO_FLUSHER. Needs CAP_SYS_RESOURCE. */
int cl_protect_from_reclaim(void);

/* Sends one datagram to a Unix socket: at a path, or where that begins with '@' at an abstract address. */
int cl_send_datagram(const char *address, const char *message, size_t length);

#endif
