/* The loads of Benchmarks/speed that are too quick for an interpreter. Each prints one number: operations a second, unless its
 * comment says otherwise. Files are spread over directories of FILES_EACH. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FILES_EACH = 1000, BLOCK = 4096 };

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double) time.tv_sec + (double) time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(long result, const char *what)
{
	if (result < 0)
		fail(what);
}

/* Returns the path in a buffer that the next call but one overwrites. */
static const char *path(const char *directory, int number, const char *suffix)
{
	static char buffers[2][4096];
	static int turn;
	char *buffer = buffers[turn ^= 1];
	snprintf(buffer, sizeof buffers[0], "%s/d%04d/f%07d%s", directory, number / FILES_EACH, number, suffix);
	return buffer;
}

static void make_directories(const char *directory, int files)
{
	char name[4096];
	for (int first = 0; first < files; first += FILES_EACH) {
		snprintf(name, sizeof name, "%s/d%04d", directory, first / FILES_EACH);
		check(mkdir(name, 0755), name);
	}
}

/* The directories are made before the clock starts. */
static double create(const char *directory, int files, int size)
{
	char *data = malloc((size_t) size + 1);
	memset(data, 'x', (size_t) size + 1);
	make_directories(directory, files);
	double begin = now();
	for (int number = 0; number < files; number++) {
		int file = open(path(directory, number, ""), O_WRONLY | O_CREAT | O_EXCL, 0644);
		check(file, "create");
		if (size > 0)
			check(write(file, data, (size_t) size), "write");
		check(close(file), "close");
	}
	return files / (now() - begin);
}

static double read_all(const char *directory, int files)
{
	char data[65536];
	double begin = now();
	for (int number = 0; number < files; number++) {
		int file = open(path(directory, number, ""), O_RDONLY);
		check(file, "open");
		while (1) {
			ssize_t count = read(file, data, sizeof data);
			check(count, "read");
			if (count == 0)
				break;
		}
		check(close(file), "close");
	}
	return files / (now() - begin);
}

static double stat_all(const char *directory, int files)
{
	struct stat status;
	double begin = now();
	for (int number = 0; number < files; number++)
		check(stat(path(directory, number, ""), &status), "stat");
	return files / (now() - begin);
}

static double rename_all(const char *directory, int files)
{
	double begin = now();
	for (int number = 0; number < files; number++)
		check(rename(path(directory, number, ""), path(directory, number, "r")), "rename");
	return files / (now() - begin);
}

static double unlink_all(const char *directory, int files)
{
	double begin = now();
	for (int number = 0; number < files; number++)
		check(unlink(path(directory, number, "r")), "unlink");
	return files / (now() - begin);
}

/* MiB a second. */
static double sequential_read(const char *name, size_t block)
{
	char *data = malloc(block);
	int file = open(name, O_RDONLY);
	check(file, name);
	double begin = now();
	uint64_t total = 0;
	while (1) {
		ssize_t count = read(file, data, block);
		check(count, "read");
		if (count == 0)
			break;
		total += (uint64_t) count;
	}
	double seconds = now() - begin;
	check(close(file), "close");
	return (double) total / (1 << 20) / seconds;
}

/* MiB a second, with an fsync at the end; over what is there where `keeps`. */
static double sequential_write(const char *name, uint64_t size, size_t block, int keeps)
{
	char *data = malloc(block);
	memset(data, 'y', block);
	int file = open(name, O_WRONLY | O_CREAT | (keeps ? 0 : O_TRUNC), 0644);
	check(file, name);
	double begin = now();
	for (uint64_t total = 0; total < size; total += block)
		check(write(file, data, block), "write");
	check(fsync(file), "fsync");
	double seconds = now() - begin;
	check(close(file), "close");
	return (double) size / (1 << 20) / seconds;
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Overwrites `blocks` blocks spread over the file, each once, in a random order that the seed gives; fdatasync after each
 * `sync_every` (0: none). The same seed is the same pass again. */
static double overwrite(const char *name, int blocks, uint64_t seed, int sync_every)
{
	char data[BLOCK];
	struct stat status;
	memset(data, 'z', sizeof data);
	int file = open(name, O_RDWR);
	check(file, name);
	check(fstat(file, &status), "fstat");
	uint64_t count = (uint64_t) status.st_size / BLOCK;
	if ((uint64_t) blocks > count) {
		errno = EINVAL;
		fail("the file is too short");
	}
	uint64_t *order = malloc(count * sizeof *order);
	uint64_t state = seed * 0x9e3779b97f4a7c15u | 1;
	for (uint64_t index = 0; index < count; index++)
		order[index] = index;
	for (uint64_t index = 0; index < (uint64_t) blocks; index++) {
		uint64_t other = index + random_next(&state) % (count - index);
		uint64_t kept = order[index];
		order[index] = order[other];
		order[other] = kept;
	}
	double begin = now();
	for (int index = 0; index < blocks; index++) {
		check(pwrite(file, data, BLOCK, (off_t) (order[index] * BLOCK)), "pwrite");
		if (sync_every > 0 && (index + 1) % sync_every == 0)
			check(fdatasync(file), "fdatasync");
	}
	double seconds = now() - begin;
	check(close(file), "close");
	return blocks / seconds;
}

/* Seconds that one changed byte takes, with its fdatasync. */
static double one_byte(const char *name)
{
	double begin = now();
	int file = open(name, O_RDWR);
	check(file, name);
	check(pwrite(file, "1", 1, 4096 * 1000), "pwrite");
	check(fdatasync(file), "fdatasync");
	check(close(file), "close");
	return now() - begin;
}

static int usage(void)
{
	fprintf(stderr, "usage: load create DIRECTORY FILES SIZE | read|stat|rename|unlink DIRECTORY FILES |\n"
			"            sequential-read FILE BLOCK | sequential-write FILE BYTES BLOCK KEEPS |\n"
			"            overwrite FILE BLOCKS SEED SYNC_EVERY | one-byte FILE\n");
	return 64;
}

int main(int count, char **words)
{
	const char *verb = count > 2 ? words[1] : "";
	const char *place = count > 2 ? words[2] : "";
	long long numbers[3] = {0};
	for (int index = 3; index < count && index < 6; index++)
		numbers[index - 3] = atoll(words[index]);
	double result;
	if (!strcmp(verb, "create") && count == 5)
		result = create(place, (int) numbers[0], (int) numbers[1]);
	else if (!strcmp(verb, "read") && count == 4)
		result = read_all(place, (int) numbers[0]);
	else if (!strcmp(verb, "stat") && count == 4)
		result = stat_all(place, (int) numbers[0]);
	else if (!strcmp(verb, "rename") && count == 4)
		result = rename_all(place, (int) numbers[0]);
	else if (!strcmp(verb, "unlink") && count == 4)
		result = unlink_all(place, (int) numbers[0]);
	else if (!strcmp(verb, "sequential-read") && count == 4)
		result = sequential_read(place, (size_t) numbers[0]);
	else if (!strcmp(verb, "sequential-write") && count == 6)
		result = sequential_write(place, (uint64_t) numbers[0], (size_t) numbers[1], (int) numbers[2]);
	else if (!strcmp(verb, "overwrite") && count == 6)
		result = overwrite(place, (int) numbers[0], (uint64_t) numbers[1], (int) numbers[2]);
	else if (!strcmp(verb, "one-byte") && count == 3)
		result = one_byte(place);
	else
		return usage();
	printf("%.6f\n", result);
	return 0;
}
