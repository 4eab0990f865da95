#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CLinuxProcess.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

int cl_signal_descriptor(const sigset_t *set)
{
	return signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int cl_next_signal(int descriptor, int *from_kernel)
{
	struct signalfd_siginfo info;
	if (read(descriptor, &info, sizeof info) != (ssize_t) sizeof info)
		return 0;
	*from_kernel = info.ssi_code == SI_KERNEL;
	return (int) info.ssi_signo;
}

/* Below: in the new process, which has one thread, and calls only what may be called after fork(2) in a process
 * that had several. */

static int write_file(const char *path, const char *text, size_t length)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	ssize_t written = write(file, text, length);
	int error = errno;
	close(file);
	errno = error;
	return written == (ssize_t) length ? 0 : -1;
}

/* "N N 1": the one number is the same inside as outside. */
static int write_map(const char *path, unsigned long number)
{
	char digits[24], text[64];
	size_t count = 0, length = 0;
	do {
		digits[count++] = (char) ('0' + number % 10);
		number /= 10;
	} while (number > 0);
	for (int round = 0; round < 2; round++) {
		for (size_t at = count; at > 0; at--)
			text[length++] = digits[at - 1];
		text[length++] = ' ';
	}
	text[length++] = '1';
	return write_file(path, text, length);
}

static int enter_user_namespace(void)
{
	uid_t user = geteuid();
	gid_t group = getegid();
	if (unshare(CLONE_NEWUSER) != 0)
		return -1;
	/* Groups of the user stay, and may not be given up: a rule that forbids a group something would be got around. */
	if (write_file("/proc/self/setgroups", "deny", 4) != 0 && errno != ENOENT)
		return -1;
	if (write_map("/proc/self/uid_map", user) != 0)
		return -1;
	return write_map("/proc/self/gid_map", group);
}

static enum cl_stage prepare(const struct cl_command *command)
{
	if (command->bind_target) {
		if (command->in_user_namespace && enter_user_namespace() != 0)
			return CL_USER_NAMESPACE;
		if (unshare(CLONE_NEWNS) != 0)
			return CL_MOUNT_NAMESPACE;
		/* What is mounted here stays here; what others mount and unmount goes on to be seen, so that no file system
		 * is kept by this namespace. */
		if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0)
			return CL_PROPAGATION;
		if (mount(command->bind_source, command->bind_target, NULL, MS_BIND, NULL) != 0)
			return CL_BINDING;
	}
	if (command->directory && chdir(command->directory) != 0)
		return CL_DIRECTORY;
	return CL_EXECUTING;
}

static void set_signals(const struct cl_command *command)
{
	for (int number = 1; number < NSIG; number++) {
		struct sigaction action;
		if (number != SIGKILL && number != SIGSTOP && sigaction(number, NULL, &action) == 0 &&
		    action.sa_handler != SIG_DFL)
			signal(number, SIG_DFL);
	}
	for (const int *number = command->ignored; *number != 0; number++)
		signal(*number, SIG_IGN);
	sigprocmask(SIG_SETMASK, command->mask, NULL);
}

struct failure {
	enum cl_stage stage;
	int error;
};

static void become(const struct cl_command *command, int pipe)
{
	struct failure failure = {.stage = prepare(command)};
	if (failure.stage == CL_EXECUTING) {
		set_signals(command);
		environ = (char **) command->environment;
		execvp(command->arguments[0], command->arguments);
	}
	failure.error = errno;
	/* Where nobody reads it any more, nobody needs it. */
	ssize_t written = write(pipe, &failure, sizeof failure);
	(void) written;
	_exit(127);
}

int cl_start_command(const struct cl_command *command, int32_t *process, enum cl_stage *stage)
{
	int ends[2];
	*stage = CL_STARTING;
	if (pipe2(ends, O_CLOEXEC) != 0)
		return errno;
	pid_t child = fork();
	if (child == 0)
		become(command, ends[1]);
	int error = errno;
	close(ends[1]);
	if (child < 0) {
		close(ends[0]);
		return error;
	}
	struct failure failure;
	ssize_t count;
	do
		count = read(ends[0], &failure, sizeof failure);
	while (count < 0 && errno == EINTR);
	close(ends[0]);
	if (count == (ssize_t) sizeof failure) {
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
		*stage = failure.stage;
		return failure.error;
	}
	*process = child;
	return 0;
}
