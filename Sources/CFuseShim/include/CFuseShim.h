/* What Swift cannot call in libfuse: versioned macros. */
#ifndef CFUSE_SHIM_H
#define CFUSE_SHIM_H
#include <sys/types.h>
#include <sys/uio.h>

#include "CFuseRaw.h"

struct fuse_session;

/* fuse_session_custom_io on the session's own descriptor, so that `read` sees requests before libfuse does, and
 * `writev` the answers after it.
 * Returns what fuse_session_custom_io returns: 0, or a negated errno. */
int fs_session_intercept(struct fuse_session *session,
			 ssize_t (*read)(int descriptor, void *buffer, size_t size, void *user_data),
			 ssize_t (*writev)(int descriptor, struct iovec *vectors, int count,
					   void *user_data));

/* fuse_session_loop_mt with a configuration of its own: `clone_fd` gives every worker its own channel,
 * `max_threads` bounds the workers. Returns what fuse_session_loop_mt returns: 0, or a negated errno,
 * or the number of the signal that ended the loop. */
int fs_session_loop_mt(struct fuse_session *session, int clone_fd, unsigned int max_threads);

/* Registers `file` with the connection of `channel`, so that the kernel reads and writes it by itself for the opens
 * that name the returned id: ioctl(FUSE_DEV_IOC_BACKING_OPEN), Linux 6.9. -1 and errno on failure. */
int fs_backing_open(int channel, int file);
int fs_backing_close(int channel, int32_t backing);

#endif
