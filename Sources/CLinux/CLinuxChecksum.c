#include "CLinux.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>

/* CRC-32C (Castagnoli), bits reversed, as iSCSI, ext4 and XFS compute it. */
#define POLYNOMIAL 0x82f63b78u

/* For byte k of eight, what each value of it adds to the sum. */
static uint32_t tables[8][256];

static void make_tables(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t sum = byte;
		for (int bit = 0; bit < 8; bit++)
			sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
		tables[0][byte] = sum;
	}
	for (int k = 1; k < 8; k++)
		for (int byte = 0; byte < 256; byte++)
			tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 0xff];
}

static uint32_t checksum_by_tables(uint32_t sum, const unsigned char *bytes, size_t length)
{
	static pthread_once_t made = PTHREAD_ONCE_INIT;
	pthread_once(&made, make_tables);
	for (; length >= 8; length -= 8, bytes += 8) {
		uint32_t low = sum ^ ((uint32_t) bytes[0] | (uint32_t) bytes[1] << 8 | (uint32_t) bytes[2] << 16
				      | (uint32_t) bytes[3] << 24);
		sum = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff]
		      ^ tables[4][low >> 24] ^ tables[3][bytes[4]] ^ tables[2][bytes[5]] ^ tables[1][bytes[6]]
		      ^ tables[0][bytes[7]];
	}
	for (; length > 0; length--, bytes++)
		sum = sum >> 8 ^ tables[0][(sum ^ *bytes) & 0xff];
	return sum;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2")))
static uint32_t checksum_by_instruction(uint32_t sum, const unsigned char *bytes, size_t length)
{
	uint64_t wide = sum;
	for (; length >= 8; length -= 8, bytes += 8) {
		uint64_t word;
		memcpy(&word, bytes, sizeof word);
		wide = __builtin_ia32_crc32di(wide, word);
	}
	sum = (uint32_t) wide;
	for (; length > 0; length--, bytes++)
		sum = __builtin_ia32_crc32qi(sum, *bytes);
	return sum;
}
#endif

uint32_t cl_crc32c(uint32_t before, const void *bytes, size_t length)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return ~checksum_by_instruction(~before, bytes, length);
#endif
	return cl_crc32c_portable(before, bytes, length);
}

uint32_t cl_crc32c_portable(uint32_t before, const void *bytes, size_t length)
{
	return ~checksum_by_tables(~before, bytes, length);
}
