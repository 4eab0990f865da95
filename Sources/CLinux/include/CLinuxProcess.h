/* Starting a command, where fork(2) is needed, and signals by descriptor. */
#ifndef CLINUX_PROCESS_H
#define CLINUX_PROCESS_H
#include <signal.h>
#include <stdint.h>

/* A descriptor from which the blocked signals of `set` are read: signalfd(2). It does not block. */
int cl_signal_descriptor(const sigset_t *set);
/* The next signal; 0 where none is pending. `*from_kernel` is 1 where the terminal sent it: to the whole
 * foreground process group, not to this process alone. */
int cl_next_signal(int descriptor, int *from_kernel);

/* What the new process was doing when it failed. */
enum cl_stage {
	CL_STARTING = 0,	/* fork(2), or the pipe that tells */
	CL_USER_NAMESPACE,
	CL_MOUNT_NAMESPACE,
	CL_PROPAGATION,
	CL_BINDING,
	CL_DIRECTORY,
	CL_EXECUTING,
};

struct cl_command {
	char *const *arguments;		/* NULL at the end; the first is looked for in PATH */
	char *const *environment;
	const char *bind_source;	/* a directory that a mount namespace of the command's own shows at bind_target; */
	const char *bind_target;	/* NULL: no such namespace */
	int in_user_namespace;		/* make that by way of a user namespace, with the user's and group's own number */
	const char *directory;		/* the working directory, looked up after that; NULL: the caller's */
	const sigset_t *mask;		/* the signals that are blocked */
	const int *ignored;		/* signals to be ignored, 0 at the end; all others that may be get their default */
};

/* Starts a command. Returns 0 once it has been executed, else an errno, and where it failed in `*stage`. The new
 * process has been waited for then. */
int cl_start_command(const struct cl_command *command, int32_t *process, enum cl_stage *stage);

#endif
