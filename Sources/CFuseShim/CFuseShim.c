#define FUSE_USE_VERSION 312
#include <errno.h>
#include <stddef.h>
#include <fuse3/fuse_lowlevel.h>
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
