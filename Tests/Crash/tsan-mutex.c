// Shows the thread sanitizer what Swift's Mutex does. Its fast path is inlined, and so instrumented; the slow one, for when
// somebody else holds the lock, lies in a library that is not, and what is ordered by that would look like a race. Preloaded
// by check-sanitizers (LD_PRELOAD); in programs without the sanitizer it only passes on.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>

#define SELF __attribute__((swift_context)) void *self
#define SWIFT __attribute__((swiftcall))
#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

extern void __tsan_acquire(void *) __attribute__((weak));
extern void __tsan_release(void *) __attribute__((weak));

// Mutex.lock() where it is held: returns when this thread holds it.
SWIFT void lock_slow(uint32_t thread, SELF) __asm__(LOCK);
SWIFT void lock_slow(uint32_t thread, SELF)
{
	static SWIFT void (*next)(uint32_t, SELF);
	if (!next)
		next = (SWIFT void (*)(uint32_t, SELF))dlsym(RTLD_NEXT, LOCK);
	next(thread, self);
	if (__tsan_acquire)
		__tsan_acquire(self);
}

// Mutex.unlock() where somebody waits.
SWIFT void unlock_slow(SELF) __asm__(UNLOCK);
SWIFT void unlock_slow(SELF)
{
	static SWIFT void (*next)(SELF);
	if (!next)
		next = (SWIFT void (*)(SELF))dlsym(RTLD_NEXT, UNLOCK);
	if (__tsan_release)
		__tsan_release(self);
	next(self);
}
