#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CTestSupport.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What the kernel shares of a ring: see io_uring_setup(2). */
struct ring {
	int descriptor;
	void *rings, *entries;
	size_t rings_size, entries_size;
	uint32_t *submit_tail, *submit_mask, *submit_array;
	uint32_t *complete_head, *complete_tail, *complete_mask;
	struct io_uring_cqe *completions;
};

struct ts_async {
	int kind;
	aio_context_t context;
	struct ring ring;
};

static int ring_open(struct ring *ring, unsigned int depth)
{
	struct io_uring_params params = {0};
	ring->descriptor = (int) syscall(SYS_io_uring_setup, depth, &params);
	if (ring->descriptor < 0)
		return -1;
	if (!(params.features & IORING_FEAT_SINGLE_MMAP)) {
		errno = ENOSYS;
		return -1;
	}
	size_t submit = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
	size_t complete = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	ring->rings_size = submit > complete ? submit : complete;
	ring->entries_size = params.sq_entries * sizeof(struct io_uring_sqe);
	ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			   ring->descriptor, IORING_OFF_SQ_RING);
	ring->entries = mmap(NULL, ring->entries_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			     ring->descriptor, IORING_OFF_SQES);
	if (ring->rings == MAP_FAILED || ring->entries == MAP_FAILED)
		return -1;
	char *base = ring->rings;
	ring->submit_tail = (uint32_t *) (base + params.sq_off.tail);
	ring->submit_mask = (uint32_t *) (base + params.sq_off.ring_mask);
	ring->submit_array = (uint32_t *) (base + params.sq_off.array);
	ring->complete_head = (uint32_t *) (base + params.cq_off.head);
	ring->complete_tail = (uint32_t *) (base + params.cq_off.tail);
	ring->complete_mask = (uint32_t *) (base + params.cq_off.ring_mask);
	ring->completions = (struct io_uring_cqe *) (base + params.cq_off.cqes);
	return 0;
}

/* One entry is submitted at a time, so there is always room. */
static int ring_submit(struct ring *ring, int opcode, int descriptor, const void *bytes, size_t size, int64_t offset, uint64_t tag)
{
	uint32_t tail = *ring->submit_tail, at = tail & *ring->submit_mask;
	struct io_uring_sqe *entry = (struct io_uring_sqe *) ring->entries + at;
	memset(entry, 0, sizeof *entry);
	entry->opcode = (uint8_t) opcode;
	entry->fd = descriptor;
	entry->addr = (uint64_t) (uintptr_t) bytes;
	entry->len = (uint32_t) size;
	entry->off = (uint64_t) offset;
	entry->user_data = tag;
	ring->submit_array[at] = at;
	__atomic_store_n(ring->submit_tail, tail + 1, __ATOMIC_RELEASE);
	long done;
	do
		done = syscall(SYS_io_uring_enter, ring->descriptor, 1, 0, 0, NULL, 0);
	while (done < 0 && (errno == EINTR || errno == EAGAIN));
	return done == 1 ? 0 : -1;
}

static int ring_wait(struct ring *ring, uint64_t *tag, int64_t *result)
{
	uint32_t head = *ring->complete_head;
	while (head == __atomic_load_n(ring->complete_tail, __ATOMIC_ACQUIRE)) {
		if (syscall(SYS_io_uring_enter, ring->descriptor, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 &&
		    errno != EINTR)
			return -1;
	}
	struct io_uring_cqe *completion = &ring->completions[head & *ring->complete_mask];
	*tag = completion->user_data;
	*result = completion->res;
	__atomic_store_n(ring->complete_head, head + 1, __ATOMIC_RELEASE);
	return 0;
}

struct ts_async *ts_async_open(int kind, unsigned int depth)
{
	struct ts_async *async = calloc(1, sizeof *async);
	if (!async)
		return NULL;
	async->kind = kind;
	int result = kind == TS_ASYNC_AIO ? (int) syscall(SYS_io_setup, depth, &async->context)
					  : ring_open(&async->ring, depth);
	if (result == 0)
		return async;
	int saved = errno;
	free(async);
	errno = saved;
	return NULL;
}

static int submit(struct ts_async *async, int writes, int descriptor, const void *bytes, size_t size, int64_t offset,
		  uint64_t tag)
{
	if (async->kind == TS_ASYNC_URING)
		return ring_submit(&async->ring, writes ? IORING_OP_WRITE : IORING_OP_READ, descriptor, bytes, size,
				   offset, tag);
	struct iocb block = {
		.aio_data = tag,
		.aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = (uint32_t) descriptor,
		.aio_buf = (uint64_t) (uintptr_t) bytes,
		.aio_nbytes = size,
		.aio_offset = offset,
	};
	struct iocb *blocks[] = {&block};
	long done;
	do
		done = syscall(SYS_io_submit, async->context, 1, blocks);
	while (done < 0 && (errno == EINTR || errno == EAGAIN));
	return done == 1 ? 0 : -1;
}

int ts_async_write(struct ts_async *async, int descriptor, const void *bytes, size_t size, int64_t offset, uint64_t tag)
{
	return submit(async, 1, descriptor, bytes, size, offset, tag);
}

int ts_async_read(struct ts_async *async, int descriptor, void *bytes, size_t size, int64_t offset, uint64_t tag)
{
	return submit(async, 0, descriptor, bytes, size, offset, tag);
}

int ts_async_wait(struct ts_async *async, uint64_t *tag, int64_t *result)
{
	if (async->kind == TS_ASYNC_URING)
		return ring_wait(&async->ring, tag, result);
	struct io_event event;
	long count;
	do
		count = syscall(SYS_io_getevents, async->context, 1, 1, &event, NULL);
	while (count < 0 && errno == EINTR);
	if (count != 1)
		return -1;
	*tag = event.data;
	*result = event.res;
	return 0;
}

void ts_async_close(struct ts_async *async)
{
	if (async->kind == TS_ASYNC_URING) {
		munmap(async->ring.rings, async->ring.rings_size);
		munmap(async->ring.entries, async->ring.entries_size);
		close(async->ring.descriptor);
	} else {
		syscall(SYS_io_destroy, async->context);
	}
	free(async);
}
