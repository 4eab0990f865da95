#include "CArchive.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

/* Its version 3 has kept this name since 2011. */
static const char library_name[] = "libarchive.so.13";
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *problem;

static __typeof__(archive_write_new) *real_write_new;
static __typeof__(archive_write_disk_new) *real_write_disk_new;
static __typeof__(archive_entry_new) *real_entry_new;
static __typeof__(archive_write_fail) *real_write_fail;
static __typeof__(archive_write_free) *real_write_free;
static __typeof__(archive_entry_free) *real_entry_free;
static __typeof__(archive_write_set_format_pax) *real_write_set_format_pax;
static __typeof__(archive_write_set_options) *real_write_set_options;
static __typeof__(archive_write_set_bytes_per_block) *real_write_set_bytes_per_block;
static __typeof__(archive_write_set_bytes_in_last_block) *real_write_set_bytes_in_last_block;
static __typeof__(archive_write_open_fd) *real_write_open_fd;
static __typeof__(archive_write_disk_set_options) *real_write_disk_set_options;
static __typeof__(archive_error_string) *real_error_string;
static __typeof__(archive_errno) *real_errno;
static __typeof__(archive_entry_clear) *real_entry_clear;
static __typeof__(archive_entry_copy_pathname) *real_entry_copy_pathname;
static __typeof__(archive_entry_copy_hardlink) *real_entry_copy_hardlink;
static __typeof__(archive_entry_copy_symlink) *real_entry_copy_symlink;
static __typeof__(archive_entry_size) *real_entry_size;
static __typeof__(archive_entry_set_mode) *real_entry_set_mode;
static __typeof__(archive_entry_set_uid) *real_entry_set_uid;
static __typeof__(archive_entry_set_gid) *real_entry_set_gid;
static __typeof__(archive_entry_set_mtime) *real_entry_set_mtime;
static __typeof__(archive_entry_set_atime) *real_entry_set_atime;
static __typeof__(archive_entry_set_nlink) *real_entry_set_nlink;
static __typeof__(archive_entry_set_size) *real_entry_set_size;
static __typeof__(archive_entry_set_rdev) *real_entry_set_rdev;
static __typeof__(archive_entry_xattr_add_entry) *real_entry_xattr_add_entry;
static __typeof__(archive_entry_acl_add_entry) *real_entry_acl_add_entry;
static __typeof__(archive_entry_sparse_add_entry) *real_entry_sparse_add_entry;
static __typeof__(archive_write_header) *real_write_header;
static __typeof__(archive_write_data) *real_write_data;
static __typeof__(archive_write_data_block) *real_write_data_block;
static __typeof__(archive_write_finish_entry) *real_write_finish_entry;
static __typeof__(archive_write_close) *real_write_close;

#define FIND(name) \
	if ((real_##name = (__typeof__(real_##name)) dlsym(library, "archive_" #name)) == NULL) { \
		problem = dlerror(); \
		return; \
	}

static void load(void)
{
	void *library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
	if (library == NULL) {
		problem = dlerror();
		return;
	}
	FIND(write_new);
	FIND(write_disk_new);
	FIND(entry_new);
	FIND(write_fail);
	FIND(write_free);
	FIND(entry_free);
	FIND(write_set_format_pax);
	FIND(write_set_options);
	FIND(write_set_bytes_per_block);
	FIND(write_set_bytes_in_last_block);
	FIND(write_open_fd);
	FIND(write_disk_set_options);
	FIND(error_string);
	FIND(errno);
	FIND(entry_clear);
	FIND(entry_copy_pathname);
	FIND(entry_copy_hardlink);
	FIND(entry_copy_symlink);
	FIND(entry_size);
	FIND(entry_set_mode);
	FIND(entry_set_uid);
	FIND(entry_set_gid);
	FIND(entry_set_mtime);
	FIND(entry_set_atime);
	FIND(entry_set_nlink);
	FIND(entry_set_size);
	FIND(entry_set_rdev);
	FIND(entry_xattr_add_entry);
	FIND(entry_acl_add_entry);
	FIND(entry_sparse_add_entry);
	FIND(write_header);
	FIND(write_data);
	FIND(write_data_block);
	FIND(write_finish_entry);
	FIND(write_close);
}

const char *ca_load(void)
{
	pthread_once(&once, load);
	return problem;
}

struct archive *ca_write_new(void)
{
	return real_write_new();
}

struct archive *ca_write_disk_new(void)
{
	return real_write_disk_new();
}

struct archive_entry *ca_entry_new(void)
{
	return real_entry_new();
}

int ca_write_fail(struct archive *archive)
{
	return real_write_fail(archive);
}

int ca_write_free(struct archive *archive)
{
	return real_write_free(archive);
}

void ca_entry_free(struct archive_entry *entry)
{
	real_entry_free(entry);
}

int ca_write_set_format_pax(struct archive *archive)
{
	return real_write_set_format_pax(archive);
}

int ca_write_set_options(struct archive *archive, const char *options)
{
	return real_write_set_options(archive, options);
}

int ca_write_set_bytes_per_block(struct archive *archive, int bytes)
{
	return real_write_set_bytes_per_block(archive, bytes);
}

int ca_write_set_bytes_in_last_block(struct archive *archive, int bytes)
{
	return real_write_set_bytes_in_last_block(archive, bytes);
}

int ca_write_open_fd(struct archive *archive, int descriptor)
{
	return real_write_open_fd(archive, descriptor);
}

int ca_write_disk_set_options(struct archive *archive, int flags)
{
	return real_write_disk_set_options(archive, flags);
}

const char *ca_error_string(struct archive *archive)
{
	return real_error_string(archive);
}

int ca_errno(struct archive *archive)
{
	return real_errno(archive);
}

struct archive_entry *ca_entry_clear(struct archive_entry *entry)
{
	return real_entry_clear(entry);
}

void ca_entry_copy_pathname(struct archive_entry *entry, const char *path)
{
	real_entry_copy_pathname(entry, path);
}

void ca_entry_copy_hardlink(struct archive_entry *entry, const char *path)
{
	real_entry_copy_hardlink(entry, path);
}

void ca_entry_copy_symlink(struct archive_entry *entry, const char *target)
{
	real_entry_copy_symlink(entry, target);
}

la_int64_t ca_entry_size(struct archive_entry *entry)
{
	return real_entry_size(entry);
}

void ca_entry_set_mode(struct archive_entry *entry, __LA_MODE_T mode)
{
	real_entry_set_mode(entry, mode);
}

void ca_entry_set_uid(struct archive_entry *entry, la_int64_t user)
{
	real_entry_set_uid(entry, user);
}

void ca_entry_set_gid(struct archive_entry *entry, la_int64_t group)
{
	real_entry_set_gid(entry, group);
}

void ca_entry_set_mtime(struct archive_entry *entry, time_t seconds, long nanoseconds)
{
	real_entry_set_mtime(entry, seconds, nanoseconds);
}

void ca_entry_set_atime(struct archive_entry *entry, time_t seconds, long nanoseconds)
{
	real_entry_set_atime(entry, seconds, nanoseconds);
}

void ca_entry_set_nlink(struct archive_entry *entry, unsigned int links)
{
	real_entry_set_nlink(entry, links);
}

void ca_entry_set_size(struct archive_entry *entry, la_int64_t size)
{
	real_entry_set_size(entry, size);
}

void ca_entry_set_rdev(struct archive_entry *entry, dev_t device)
{
	real_entry_set_rdev(entry, device);
}

void ca_entry_xattr_add_entry(struct archive_entry *entry, const char *name, const void *value, size_t size)
{
	real_entry_xattr_add_entry(entry, name, value, size);
}

int ca_entry_acl_add_entry(struct archive_entry *entry, int type, int permissions, int tag, int identifier, const char *name)
{
	return real_entry_acl_add_entry(entry, type, permissions, tag, identifier, name);
}

void ca_entry_sparse_add_entry(struct archive_entry *entry, la_int64_t offset, la_int64_t length)
{
	real_entry_sparse_add_entry(entry, offset, length);
}

int ca_write_header(struct archive *archive, struct archive_entry *entry)
{
	return real_write_header(archive, entry);
}

la_ssize_t ca_write_data(struct archive *archive, const void *data, size_t size)
{
	return real_write_data(archive, data, size);
}

la_ssize_t ca_write_data_block(struct archive *archive, const void *data, size_t size, la_int64_t offset)
{
	return real_write_data_block(archive, data, size, offset);
}

int ca_write_finish_entry(struct archive *archive)
{
	return real_write_finish_entry(archive);
}

int ca_write_close(struct archive *archive)
{
	return real_write_close(archive);
}
