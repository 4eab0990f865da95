#define FUSE_USE_VERSION 312
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <stddef.h>
#include <fuse3/fuse_lowlevel.h>
#include <sys/ioctl.h>
#include "CFuseShim.h"

int fs_session_loop_mt(struct fuse_session *session, int clone_fd, unsigned int max_threads)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	if (!config)
		return -ENOMEM;
	fuse_loop_cfg_set_clone_fd(config, (unsigned int) clone_fd);
	fuse_loop_cfg_set_max_threads(config, max_threads);
	/* A worker that ends and is started again costs more than one that waits. */
	fuse_loop_cfg_set_idle_threads(config, max_threads);
	int result = fuse_session_loop_mt(session, config);
	fuse_loop_cfg_destroy(config);
	return result;
}

static ssize_t plain_splice(int from, off_t *from_offset, int to, off_t *to_offset, size_t length,
			    unsigned int flags, void *user_data)
{
	(void) user_data;
	return splice(from, from_offset, to, to_offset, length, flags);
}

int fs_session_intercept(struct fuse_session *session,
			 ssize_t (*read)(int descriptor, void *buffer, size_t size, void *user_data),
			 ssize_t (*writev)(int descriptor, struct iovec *vectors, int count,
					   void *user_data))
{
	const struct fuse_custom_io io = {
		.writev = writev,
		.read = read,
		.splice_receive = plain_splice,
		.splice_send = plain_splice,
	};
	return fuse_session_custom_io(session, &io, fuse_session_fd(session));
}

struct fs_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

int fs_backing_open(int channel, int file)
{
	const struct fs_backing_map map = { .fd = file };
	return ioctl(channel, _IOW(229, 1, struct fs_backing_map), &map);
}

int fs_backing_close(int channel, int32_t backing)
{
	const uint32_t id = (uint32_t) backing;
	return ioctl(channel, _IOW(229, 2, uint32_t), &id);
}
