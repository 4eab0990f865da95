/* Requests of the FUSE protocol that libfuse 3.14 does not know, as the kernel lays them out
 * (include/uapi/linux/fuse.h, protocol 7.37 and 7.39). All fields are in the machine's byte order. */
#ifndef CFUSE_RAW_H
#define CFUSE_RAW_H
#include <stdint.h>

enum {
	FS_OPCODE_SETATTR = 4,
	FS_OPCODE_OPEN = 14,
	FS_OPCODE_WRITE = 16,
	FS_OPCODE_FSYNC = 20,
	FS_OPCODE_SETXATTR = 21,
	FS_OPCODE_INIT = 26,
	FS_OPCODE_FSYNCDIR = 30,
	FS_OPCODE_CREATE = 35,
	FS_OPCODE_FALLOCATE = 43,
	FS_OPCODE_LSEEK = 46,
	FS_OPCODE_COPY_FILE_RANGE = 47,
	FS_OPCODE_TMPFILE = 51,
	FS_OPCODE_STATX = 52,
};

/* Flags of INIT, the second word's too. */
enum {
	FS_INIT_HANDLE_KILLPRIV_V2 = 1 << 28,
	FS_INIT_SETXATTR_EXT = 1 << 29,
	FS_INIT_EXT = 1 << 30,
	FS_INIT2_DIRECT_IO_ALLOW_MMAP = 1 << 4,
	FS_INIT2_PASSTHROUGH = 1 << 5,
};

/* Flags of the answer to an open. */
enum { FS_OPEN_KEEP_CACHE = 1 << 1, FS_OPEN_PASSTHROUGH = 1 << 7 };

/* The kernel asks that the change take set-id bits and file capabilities away. */
enum { FS_WRITE_KILL_SUIDGID = 1 << 2, FS_SETATTR_KILL_SUIDGID = 1 << 11, FS_SETXATTR_KILL_SGID = 1 << 0 };

struct fs_in_header {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid;
	uint16_t total_extlen, padding;
};

struct fs_out_header {
	uint32_t len;
	int32_t error;
	uint64_t unique;
};

struct fs_init_in {
	uint32_t major, minor, max_readahead, flags, flags2;
};

struct fs_init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth;
	uint32_t unused[6];
};

struct fs_open_in {
	uint32_t flags, open_flags;
};

struct fs_fsync_in {
	uint64_t fh;
	uint32_t fsync_flags, padding;
};

/* With FS_INIT_SETXATTR_EXT; without, the first two words alone. */
struct fs_setxattr_in {
	uint32_t size, flags, setxattr_flags, padding;
};

struct fs_write_in {
	uint64_t fh, offset;
	uint32_t size, write_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};

struct fs_create_in {
	uint32_t flags, mode, umask, open_flags;
};

struct fs_attr {
	uint64_t ino, size, blocks, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags;
};

struct fs_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct fs_create_out {
	/* fuse_entry_out */
	uint64_t nodeid, generation, entry_valid, attr_valid;
	uint32_t entry_valid_nsec, attr_valid_nsec;
	struct fs_attr attr;
	struct fs_open_out open;
};

struct fs_statx_in {
	uint32_t getattr_flags, reserved;
	uint64_t fh;
	uint32_t sx_flags, sx_mask;
};

struct fs_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fs_statx_out {
	struct fs_out_header header;
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, flags;
	uint64_t spare[2];
	/* fuse_statx */
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, spare0;
	uint64_t ino, size, blocks, attributes_mask;
	struct fs_sx_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t spare2[14];
};

_Static_assert(sizeof(struct fs_in_header) == 40, "fuse_in_header");
_Static_assert(sizeof(struct fs_init_out) == 64, "fuse_init_out");
_Static_assert(sizeof(struct fs_write_in) == 40, "fuse_write_in");
_Static_assert(sizeof(struct fs_attr) == 88, "fuse_attr");
_Static_assert(sizeof(struct fs_create_out) == 128 + 16, "fuse_entry_out and fuse_open_out");
_Static_assert(sizeof(struct fs_statx_out) == 16 + 32 + 256, "fuse_statx_out");

#endif
