#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinux.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/statfs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

const long cl_utime_omit = UTIME_OMIT;
const long cl_utime_now = UTIME_NOW;

int cl_openat(int directory, const char *path, int flags, uint32_t mode)
{
	return openat(directory, path, flags, (mode_t) mode);
}

static struct cl_time plain_time(struct statx_timestamp time)
{
	return (struct cl_time){.seconds = time.tv_sec, .nanoseconds = time.tv_nsec};
}

int cl_statx(int directory, const char *path, int flags, struct cl_status *status)
{
	struct statx raw;
	int result = statx(directory, path, flags | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_BTIME, &raw);
	if (result != 0)
		return result;
	*status = (struct cl_status){
		.device = makedev(raw.stx_dev_major, raw.stx_dev_minor),
		.inode = raw.stx_ino,
		.special_device = makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
		.mode = raw.stx_mode,
		.links = raw.stx_nlink,
		.user = raw.stx_uid,
		.group = raw.stx_gid,
		.size = (int64_t) raw.stx_size,
		.blocks = (int64_t) raw.stx_blocks,
		.block_size = (int32_t) raw.stx_blksize,
		.knows_birth = (raw.stx_mask & STATX_BTIME) != 0,
		.accessed = plain_time(raw.stx_atime),
		.modified = plain_time(raw.stx_mtime),
		.changed = plain_time(raw.stx_ctime),
		.birth = plain_time(raw.stx_btime),
	};
	return 0;
}

int cl_file_system_type(int descriptor, uint32_t *type)
{
	struct statfs raw;
	int result = fstatfs(descriptor, &raw);
	*type = (uint32_t) raw.f_type;
	return result;
}

int cl_is_protected(int descriptor)
{
	struct statx raw;
	if (statx(descriptor, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW, 0, &raw) != 0)
		return -1;
	return (raw.stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND)) != 0;
}

struct handle_room {
	struct file_handle header;
	uint8_t bytes[MAX_HANDLE_SZ];
};

int cl_name_to_handle_at(int directory, const char *path, uint8_t *bytes, uint32_t *length, int32_t *type,
			 int flags)
{
	struct handle_room room;
	int mount;
	room.header.handle_bytes = *length > MAX_HANDLE_SZ ? MAX_HANDLE_SZ : *length;
	int result = name_to_handle_at(directory, path, &room.header, &mount, flags);
	*length = room.header.handle_bytes;
	*type = room.header.handle_type;
	if (result == 0)
		memcpy(bytes, room.header.f_handle, room.header.handle_bytes);
	return result;
}

int cl_open_by_handle_at(int mount, const uint8_t *bytes, uint32_t length, int32_t type, int flags)
{
	struct handle_room room;
	if (length > MAX_HANDLE_SZ) {
		errno = EINVAL;
		return -1;
	}
	room.header.handle_bytes = length;
	room.header.handle_type = type;
	memcpy(room.header.f_handle, bytes, length);
	return open_by_handle_at(mount, &room.header, flags);
}

ssize_t cl_getdents64(int directory, void *buffer, size_t size)
{
	return syscall(SYS_getdents64, directory, buffer, size);
}

int cl_clone_range(int source, uint64_t source_offset, uint64_t length, int target, uint64_t target_offset)
{
	struct file_clone_range range = {
		.src_fd = source, .src_offset = source_offset, .src_length = length, .dest_offset = target_offset,
	};
	return ioctl(target, FICLONERANGE, &range);
}

static int capabilities(struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	return (int) syscall(SYS_capget, &header, data);
}

static int set_capabilities(const struct __user_cap_data_struct data[2])
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	return (int) syscall(SYS_capset, &header, data);
}

int cl_assume_user(uint32_t user, uint32_t group, uint64_t effective)
{
	struct __user_cap_data_struct data[2];
	setfsgid(group);
	setfsuid(user);
	/* The two calls tell nothing of failure; asking again does. */
	if (setfsuid((uid_t) -1) != (int) user || setfsgid((gid_t) -1) != (int) group) {
		errno = EPERM;
		return -1;
	}
	if (capabilities(data) != 0)
		return -1;
	data[0].effective = (uint32_t) effective & data[0].permitted;
	data[1].effective = (uint32_t) (effective >> 32) & data[1].permitted;
	return set_capabilities(data);
}

uint64_t cl_permitted_capabilities(void)
{
	struct __user_cap_data_struct data[2];
	if (capabilities(data) != 0)
		return 0;
	return data[0].permitted | (uint64_t) data[1].permitted << 32;
}

int cl_drop_capability(unsigned int capability)
{
	struct __user_cap_data_struct data[2];
	if (capabilities(data) != 0)
		return -1;
	uint32_t mask = ~(1u << (capability % 32));
	data[capability / 32].effective &= mask;
	data[capability / 32].permitted &= mask;
	data[capability / 32].inheritable &= mask;
	return set_capabilities(data);
}

int cl_unshare_fs(void)
{
	return unshare(CLONE_FS);
}

static __thread struct cl_worker this_worker;

struct cl_worker *cl_this_worker(void)
{
	return &this_worker;
}

static pthread_key_t buffer_key;
static pthread_once_t buffer_key_once = PTHREAD_ONCE_INIT;
static int buffer_key_error;

static void make_buffer_key(void)
{
	buffer_key_error = pthread_key_create(&buffer_key, free);
}

void *cl_worker_buffer(size_t size)
{
	enum { page = 4096, step = 0x10000 };
	if (this_worker.buffer_size >= size)
		return this_worker.buffer;
	pthread_once(&buffer_key_once, make_buffer_key);
	if (buffer_key_error != 0 || size > SIZE_MAX - step)
		return NULL;
	size_t rounded = (size + step - 1) & ~(size_t)(step - 1);
	void *buffer = aligned_alloc(page, rounded);
	if (buffer == NULL)
		return NULL;
	/* The key's value is what the thread's end frees. */
	if (pthread_setspecific(buffer_key, buffer) != 0) {
		free(buffer);
		return NULL;
	}
	free(this_worker.buffer);
	this_worker.buffer = buffer;
	this_worker.buffer_size = rounded;
	return buffer;
}

int cl_poller(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

int cl_poller_wait(int poller)
{
	struct epoll_event event;
	return epoll_wait(poller, &event, 1, -1);
}

static long nanoseconds_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

int cl_poll_for(int descriptor, long nanoseconds)
{
	struct pollfd entry = {.fd = descriptor, .events = POLLIN};
	long end = nanoseconds_now() + nanoseconds;
	int count;
	do
		count = poll(&entry, 1, 0);
	while (count == 0 && nanoseconds_now() < end);
	return count;
}

void cl_poller_arm(int poller, int descriptor)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT};
	int kept = errno;
	int result;
	/* Others arm and disarm meanwhile. */
	do {
		result = epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event);
		/* Known, where it was armed before, and told or is armed still. */
		if (result != 0 && errno == EEXIST)
			result = epoll_ctl(poller, EPOLL_CTL_MOD, descriptor, &event);
	} while (result != 0 && errno == ENOENT);
	errno = kept;
}

void cl_poller_disarm(int poller, int descriptor)
{
	int kept = errno;
	/* With no events but the errors, which cannot be left out, FUSE's wake-ups, which do not say what they are for,
	 * would go on waking whoever waits. */
	epoll_ctl(poller, EPOLL_CTL_DEL, descriptor, NULL);
	errno = kept;
}

void cl_syslog(int priority, const char *message)
{
	syslog(priority, "%s", message);
}

int cl_peer_user(int socket, uint32_t *user, int32_t *process)
{
	struct ucred credentials;
	socklen_t size = sizeof credentials;
	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
		return -1;
	*user = credentials.uid;
	*process = credentials.pid;
	return 0;
}

ssize_t cl_readlink(int descriptor, void *buffer, size_t size)
{
	return readlinkat(descriptor, "", buffer, size);
}

int cl_unix_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static int unix_address(struct sockaddr_un *address, const char *path)
{
	if (strlen(path) >= sizeof address->sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	strcpy(address->sun_path, path);
	return 0;
}

int cl_unix_bind(int socket, const char *path)
{
	struct sockaddr_un address;
	if (unix_address(&address, path) != 0)
		return -1;
	return bind(socket, (struct sockaddr *) &address, sizeof address);
}

int cl_unix_connect(int socket, const char *path)
{
	struct sockaddr_un address;
	if (unix_address(&address, path) != 0)
		return -1;
	return connect(socket, (struct sockaddr *) &address, sizeof address);
}

int cl_unix_accept(int socket)
{
	return accept4(socket, NULL, NULL, SOCK_CLOEXEC);
}

ssize_t cl_send_descriptors(int socket, const void *bytes, size_t size, const int *descriptors, int count)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(CL_DESCRIPTORS_MAX * sizeof(int))];
	} control;
	struct iovec piece = {.iov_base = (void *) bytes, .iov_len = size};
	struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
	if (count < 1 || count > CL_DESCRIPTORS_MAX) {
		errno = EINVAL;
		return -1;
	}
	memset(&control, 0, sizeof control);
	message.msg_control = control.space;
	message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), descriptors, count * sizeof(int));
	return sendmsg(socket, &message, MSG_NOSIGNAL);
}

ssize_t cl_receive_descriptors(int socket, void *buffer, size_t size, int *descriptors, int *count)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(CL_DESCRIPTORS_MAX * sizeof(int))];
	} control;
	struct iovec piece = {.iov_base = buffer, .iov_len = size};
	struct msghdr message = {
		.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
	*count = 0;
	ssize_t received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
	if (received < 0)
		return received;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		int came = (int) ((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (int i = 0; i < came; i++) {
			int descriptor;
			memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof descriptor);
			if (*count < CL_DESCRIPTORS_MAX)
				descriptors[(*count)++] = descriptor;
			else
				close(descriptor);
		}
	}
	return received;
}

int cl_pidfd_open(int32_t process)
{
	return (int) syscall(SYS_pidfd_open, process, 0);
}

int32_t cl_thread_number(void)
{
	return (int32_t) syscall(SYS_gettid);
}

int cl_signal_thread(int32_t thread, int signal)
{
	return (int) syscall(SYS_tgkill, getpid(), thread, signal);
}

void cl_futex_wait(void *address, uint32_t value)
{
	syscall(SYS_futex, address, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

void cl_futex_wake(void *address)
{
	syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

int cl_flush(int descriptor)
{
	return sync_file_range(descriptor, 0, 0,
			       SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}

/* The C library's headers may be older than the kernel. */
#ifndef FAN_REPORT_TARGET_FID
#define FAN_REPORT_TARGET_FID 0x1000
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000
#endif
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif

int cl_find_place(int directory, const char *path, int flags, struct cl_place *place)
{
	struct statx raw;
	uint64_t mount = 0;
	int result = statx(directory, path, flags | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC,
			   STATX_TYPE | STATX_INO | STATX_MNT_ID, &raw);
	if (result != 0)
		return result;
	/* stx_mnt_id, for which old headers have no name. */
	if (raw.stx_mask & STATX_MNT_ID)
		memcpy(&mount, (const char *) &raw + 0x90, sizeof mount);
	*place = (struct cl_place){
		.device = makedev(raw.stx_dev_major, raw.stx_dev_minor),
		.device_major = raw.stx_dev_major,
		.device_minor = raw.stx_dev_minor,
		.inode = raw.stx_ino,
		.mount = mount,
		.mode = raw.stx_mode & S_IFMT,
	};
	return 0;
}

int cl_mount_number(int descriptor, uint64_t *number)
{
	static const unsigned int masks[] = {STATX_MNT_ID_UNIQUE, STATX_MNT_ID};
	*number = 0;
	for (size_t at = 0; at < sizeof masks / sizeof *masks; at++) {
		struct statx raw;
		if (statx(descriptor, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, masks[at], &raw) != 0)
			return -1;
		/* stx_mnt_id; a kernel that does not know a mask leaves it out of the answer. */
		if (raw.stx_mask & masks[at]) {
			memcpy(number, (const char *) &raw + 0x90, sizeof *number);
			return 0;
		}
	}
	return 0;
}

int cl_clone_mount(int directory)
{
	return (int) syscall(SYS_open_tree, directory, "", OPEN_TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH);
}

int cl_compare_threads(int32_t one, int32_t other, int resource)
{
	static const int types[] = {
		[CL_SAME_MEMORY] = KCMP_VM, [CL_SAME_DESCRIPTORS] = KCMP_FILES, [CL_SAME_DIRECTORIES] = KCMP_FS,
	};
	return (int) syscall(SYS_kcmp, one, other, types[resource], 0, 0);
}

int cl_change_group(int unlimited_queue)
{
	unsigned int flags = FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_REPORT_DFID_NAME | FAN_NONBLOCK | FAN_CLOEXEC;
	if (unlimited_queue)
		flags |= FAN_UNLIMITED_QUEUE;
	int group = fanotify_init(flags | FAN_REPORT_TARGET_FID, O_RDONLY);
	/* Linux before 5.17 does not tell which inode an entry was for. */
	return group < 0 && errno == EINVAL ? fanotify_init(flags, O_RDONLY) : group;
}

int cl_watch_file_system(int group, int directory)
{
	return fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
			     FAN_MODIFY | FAN_ATTRIB | FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_ONDIR,
			     directory, ".");
}

int cl_ignore_writes_through(int group, int directory)
{
	return fanotify_mark(group,
			     FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY,
			     FAN_MODIFY, directory, ".");
}

static uint32_t change_kinds(uint64_t mask)
{
	uint32_t kinds = 0;
	if (mask & FAN_MODIFY)
		kinds |= CL_CHANGED_DATA;
	if (mask & FAN_ATTRIB)
		kinds |= CL_CHANGED_ATTRIBUTES;
	if (mask & (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO))
		kinds |= CL_CHANGED_ENTRY;
	if ((mask & FAN_ONDIR) && (mask & (FAN_MOVED_FROM | FAN_MOVED_TO)))
		kinds |= CL_MOVED_DIRECTORY;
	if (mask & FAN_Q_OVERFLOW)
		kinds |= CL_LOST_CHANGES;
	return kinds;
}

size_t cl_next_change(const void *events, size_t size, struct cl_change *change)
{
	const struct fanotify_event_metadata *event = events;
	if (!FAN_EVENT_OK(event, size))
		return 0;
	*change = (struct cl_change){.kinds = change_kinds(event->mask), .process = event->pid};
	const uint8_t *at = (const uint8_t *) event + event->metadata_len;
	const uint8_t *end = (const uint8_t *) event + event->event_len;
	while (at + sizeof(struct fanotify_event_info_fid) + sizeof(struct file_handle) <= end) {
		const struct fanotify_event_info_fid *info = (const void *) at;
		const struct file_handle *raw = (const void *) info->handle;
		struct cl_handle handle = {
			.bytes = raw->f_handle, .length = raw->handle_bytes, .type = raw->handle_type,
		};
		if (info->hdr.len == 0)
			break;
		if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_FID) {
			change->object = handle;
		} else if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME ||
			   info->hdr.info_type == FAN_EVENT_INFO_TYPE_DFID) {
			change->directory = handle;
			if (info->hdr.info_type == FAN_EVENT_INFO_TYPE_DFID_NAME)
				change->name = (const char *) raw->f_handle + raw->handle_bytes;
		}
		at += info->hdr.len;
	}
	return event->event_len;
}

void cl_return_memory(int bytes)
{
	mallopt(M_MMAP_THRESHOLD, bytes);
	mallopt(M_TRIM_THRESHOLD, bytes);
}

int cl_protect_from_reclaim(void)
{
	return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
}

int cl_send_datagram(const char *address, const char *message, size_t length)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	size_t size = strlen(address);
	if (size >= sizeof(to.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(to.sun_path, address, size);
	/* An abstract name has no NUL at its end. */
	socklen_t room = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + size + 1);
	if (address[0] == '@') {
		to.sun_path[0] = 0;
		room--;
	}
	int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (descriptor < 0) return -1;
	ssize_t sent = sendto(descriptor, message, length, MSG_NOSIGNAL, (struct sockaddr *) &to, room);
	int error = errno;
	close(descriptor);
	errno = error;
	return sent < 0 ? -1 : 0;
}
