#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CTestSupport.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

const int64_t ts_utime_now = UTIME_NOW;
const int64_t ts_utime_omit = UTIME_OMIT;

int ts_openat(int directory, const char *path, int flags, uint32_t mode)
{
	return openat(directory, path, flags, (mode_t) mode);
}

ssize_t ts_getdents64(int directory, void *buffer, size_t size)
{
	return syscall(SYS_getdents64, directory, buffer, size);
}

int ts_utimensat(const char *path, int64_t atime_s, int64_t atime_ns, int64_t mtime_s, int64_t mtime_ns)
{
	struct timespec times[2] = {{atime_s, atime_ns}, {mtime_s, mtime_ns}};
	return utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

uint64_t ts_makedev(uint32_t major, uint32_t minor)
{
	return makedev(major, minor);
}

uint32_t ts_minor(uint64_t device)
{
	return minor(device);
}

static int unix_address(struct sockaddr_un *address, const char *path)
{
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof address->sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address->sun_path, path);
	return 0;
}

int ts_bind_socket(const char *path)
{
	struct sockaddr_un address;
	if (unix_address(&address, path) != 0)
		return -1;
	int raw = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (raw < 0)
		return -1;
	int result = bind(raw, (struct sockaddr *) &address, sizeof address);
	int saved = errno;
	close(raw);
	errno = saved;
	return result;
}

int ts_ofd_lock(int descriptor, int type, int64_t start, int64_t length)
{
	struct flock lock = {.l_type = (short) type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
	return fcntl(descriptor, F_OFD_SETLK, &lock);
}

struct thread_call {
	pthread_t thread;
	uint32_t user, group, mask;
	const uint32_t *groups;
	size_t group_count;
	void (*body)(void *);
	void *context;
	int result;
};

/* The raw calls change the calling thread only. */
static void *call_as_user(void *pointer)
{
	struct thread_call *call = pointer;
	call->result = -1;
	if (unshare(CLONE_FS) != 0)
		return NULL;
	umask((mode_t) call->mask);
	if (call->user != 0 && (syscall(SYS_setgroups, call->group_count, call->groups) != 0 ||
				syscall(SYS_setresgid, call->group, call->group, call->group) != 0 ||
				syscall(SYS_setresuid, call->user, call->user, call->user) != 0))
		return NULL;
	call->result = 0;
	call->body(call->context);
	return NULL;
}

int ts_as_user(uint32_t user, uint32_t group, const uint32_t *groups, size_t group_count, uint32_t mask,
	       void (*body)(void *), void *context)
{
	struct thread_call call = {.user = user, .group = group, .groups = groups, .group_count = group_count,
				   .mask = mask, .body = body, .context = context};
	if (pthread_create(&call.thread, NULL, call_as_user, &call) != 0)
		return -1;
	pthread_join(call.thread, NULL);
	return call.result;
}

static void *call_body(void *pointer)
{
	struct thread_call *call = pointer;
	call->body(call->context);
	return NULL;
}

void *ts_thread(void (*body)(void *), void *context)
{
	struct thread_call *call = calloc(1, sizeof *call);
	if (!call)
		return NULL;
	call->body = body;
	call->context = context;
	if (pthread_create(&call->thread, NULL, call_body, call) != 0) {
		free(call);
		return NULL;
	}
	return call;
}

static void did_interrupt(int number)
{
	(void)number;
}

void ts_interrupt(void *thread)
{
	struct thread_call *call = thread;
	struct sigaction action = { .sa_handler = did_interrupt };	/* no SA_RESTART */

	sigaction(SIGUSR2, &action, NULL);
	pthread_kill(call->thread, SIGUSR2);
}

void ts_join(void *thread)
{
	struct thread_call *call = thread;
	pthread_join(call->thread, NULL);
	free(call);
}

static __thread sigjmp_buf fault;
static __thread volatile sig_atomic_t expects_fault;

static void did_fault(int number)
{
	if (expects_fault)
		siglongjmp(fault, 1);
	signal(number, SIG_DFL);
	raise(number);
}

static int copy_with_faults(void *target, const void *source, size_t size)
{
	struct sigaction action = {.sa_handler = did_fault}, old;
	int result = -1;
	sigaction(SIGBUS, &action, &old);
	if (sigsetjmp(fault, 1) == 0) {
		expects_fault = 1;
		memcpy(target, source, size);
		result = 0;
	}
	expects_fault = 0;
	sigaction(SIGBUS, &old, NULL);
	return result;
}

int ts_read_mapping(const void *mapping, void *buffer, size_t size)
{
	return copy_with_faults(buffer, mapping, size);
}

int ts_write_mapping(void *mapping, const void *bytes, size_t size)
{
	return copy_with_faults(mapping, bytes, size);
}

uint64_t ts_hash(uint64_t hash, const void *bytes, size_t size)
{
	const uint8_t *at = bytes;
	hash ^= 0xcbf29ce484222325u;
	for (; size >= 8; at += 8, size -= 8) {
		uint64_t word;
		memcpy(&word, at, 8);
		hash = (hash ^ word) * 0x9fb21c651e98df25u;
		hash ^= hash >> 32;
	}
	for (; size > 0; at++, size--)
		hash = (hash ^ *at) * 0x100000001b3u;
	return hash;
}

void ts_fill(void *bytes, size_t size, uint64_t seed)
{
	uint8_t *at = bytes;
	uint64_t word = 0;
	for (size_t i = 0; i < size; i++) {
		if (i % 8 == 0) {
			uint64_t z = seed += 0x9e3779b97f4a7c15u;
			z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
			z = (z ^ z >> 27) * 0x94d049bb133111ebu;
			word = z ^ z >> 31;
		}
		at[i] = (uint8_t) (word >> i % 8 * 8) | 1;
	}
}

void ts_fill_word(void *bytes, size_t size, uint64_t word)
{
	size_t done = size < sizeof word ? size : sizeof word;
	memcpy(bytes, &word, done);
	while (done < size) {
		size_t more = done < size - done ? done : size - done;
		memcpy((char *) bytes + done, bytes, more);
		done += more;
	}
}

ssize_t ts_word_mismatch(const void *bytes, size_t size, uint64_t word)
{
	const char *at = bytes;
	size_t first = size < sizeof word ? size : sizeof word;
	/* Every byte is that of 8 bytes before. */
	if (memcmp(at, &word, first) == 0 && memcmp(at, at + first, size - first) == 0)
		return -1;
	for (size_t i = 0; i < size; i++)
		if (at[i] != ((const char *) &word)[i % sizeof word])
			return (ssize_t) i;
	return -1;
}

void ts_futex_wait(const void *word, uint32_t expected, int milliseconds)
{
	struct timespec timeout = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L};
	syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

void ts_futex_wake(const void *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int ts_await_end(pid_t child, int milliseconds)
{
	struct pollfd ended = {.events = POLLIN};
	ended.fd = (int) syscall(SYS_pidfd_open, child, 0);
	if (ended.fd < 0)
		return -1;
	int result = poll(&ended, 1, milliseconds);
	int saved = errno;
	close(ended.fd);
	errno = saved;
	return result < 0 && errno != EINTR ? -1 : 0;
}

void ts_die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

ssize_t ts_talk(const char *path, const void *bytes, size_t size, void *answer, size_t room)
{
	struct sockaddr_un address;
	struct timeval patience = {.tv_sec = 1};
	size_t count = 0;
	if (unix_address(&address, path) != 0)
		return -1;
	int raw = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (raw < 0)
		return -1;
	setsockopt(raw, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	setsockopt(raw, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
	if (connect(raw, (struct sockaddr *) &address, sizeof address) != 0) {
		int saved = errno;
		close(raw);
		errno = saved;
		return -1;
	}
	for (size_t sent = 0; sent < size;) {
		ssize_t more = send(raw, (const char *) bytes + sent, size - sent, MSG_NOSIGNAL);
		if (more <= 0)
			break;
		sent += (size_t) more;
	}
	shutdown(raw, SHUT_WR);
	while (count < room) {
		ssize_t more = recv(raw, (char *) answer + count, room - count, 0);
		if (more <= 0)
			break;
		count += (size_t) more;
	}
	close(raw);
	return (ssize_t) count;
}

long ts_file_system_type(const char *path)
{
	struct statfs status;
	if (statfs(path, &status) != 0)
		return -1;
	return (long) status.f_type;
}

enum { page_size = 4096 };

void *ts_waiting_page(int *faults)
{
	*faults = (int) syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (*faults < 0)
		return NULL;
	struct uffdio_api api = { .api = UFFD_API };
	void *page = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = {
		.range = { .start = (uintptr_t) page, .len = page_size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	if (page == MAP_FAILED || ioctl(*faults, UFFDIO_API, &api) != 0
	    || ioctl(*faults, UFFDIO_REGISTER, &range) != 0)
		return NULL;
	return page;
}

int ts_await_fault(int faults, int milliseconds)
{
	struct pollfd entry = { .fd = faults, .events = POLLIN };
	return poll(&entry, 1, milliseconds) == 1;
}

int ts_fill_page(int faults, void *page, int byte)
{
	static _Thread_local unsigned char content[page_size];
	memset(content, byte, page_size);
	struct uffdio_copy copy = { .dst = (uintptr_t) page, .src = (uintptr_t) content, .len = page_size };
	const int result = ioctl(faults, UFFDIO_COPY, &copy);
	close(faults);
	return result;
}
