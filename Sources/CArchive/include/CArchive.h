/* libarchive, whose pax format GNU tar and bsdtar restore. It is loaded when it is needed: linked to the program it would bring a dozen
   other libraries, which every `fusesnap ctl` would load, and whoever never exports would have to install. */
#ifndef CARCHIVE_H
#define CARCHIVE_H
#include <archive.h>
#include <archive_entry.h>

/* Loads it, once; NULL, or what is wrong. Nothing below may be called before. Safe for use by all threads. */
const char *ca_load(void);

/* As libarchive's functions of these names, with archive_ in the place of ca_. */
struct archive *ca_write_new(void);
struct archive *ca_write_disk_new(void);
struct archive_entry *ca_entry_new(void);
int ca_write_fail(struct archive *archive);
int ca_write_free(struct archive *archive);
void ca_entry_free(struct archive_entry *entry);
int ca_write_set_format_pax(struct archive *archive);
int ca_write_set_options(struct archive *archive, const char *options);
int ca_write_set_bytes_per_block(struct archive *archive, int bytes);
int ca_write_set_bytes_in_last_block(struct archive *archive, int bytes);
int ca_write_open_fd(struct archive *archive, int descriptor);
int ca_write_disk_set_options(struct archive *archive, int flags);
const char *ca_error_string(struct archive *archive);
int ca_errno(struct archive *archive);
struct archive_entry *ca_entry_clear(struct archive_entry *entry);
void ca_entry_copy_pathname(struct archive_entry *entry, const char *path);
void ca_entry_copy_hardlink(struct archive_entry *entry, const char *path);
void ca_entry_copy_symlink(struct archive_entry *entry, const char *target);
la_int64_t ca_entry_size(struct archive_entry *entry);
void ca_entry_set_mode(struct archive_entry *entry, __LA_MODE_T mode);
void ca_entry_set_uid(struct archive_entry *entry, la_int64_t user);
void ca_entry_set_gid(struct archive_entry *entry, la_int64_t group);
void ca_entry_set_mtime(struct archive_entry *entry, time_t seconds, long nanoseconds);
void ca_entry_set_atime(struct archive_entry *entry, time_t seconds, long nanoseconds);
void ca_entry_set_nlink(struct archive_entry *entry, unsigned int links);
void ca_entry_set_size(struct archive_entry *entry, la_int64_t size);
void ca_entry_set_rdev(struct archive_entry *entry, dev_t device);
void ca_entry_xattr_add_entry(struct archive_entry *entry, const char *name, const void *value, size_t size);
int ca_entry_acl_add_entry(struct archive_entry *entry, int type, int permissions, int tag, int identifier, const char *name);
void ca_entry_sparse_add_entry(struct archive_entry *entry, la_int64_t offset, la_int64_t length);
int ca_write_header(struct archive *archive, struct archive_entry *entry);
la_ssize_t ca_write_data(struct archive *archive, const void *data, size_t size);
la_ssize_t ca_write_data_block(struct archive *archive, const void *data, size_t size, la_int64_t offset);
int ca_write_finish_entry(struct archive *archive);
int ca_write_close(struct archive *archive);

#endif
