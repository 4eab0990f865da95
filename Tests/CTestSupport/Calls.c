#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "CTestSupport.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

int ts_statx(int directory, const char *path, int flags, unsigned int mask, struct statx *status)
{
	return statx(directory, path, flags, mask, status);
}

int ts_ioctl(int descriptor, unsigned long request, void *argument)
{
	return ioctl(descriptor, request, argument);
}

/* The kernel's struct file_handle begins with the same two words. */
int ts_name_to_handle_at(int directory, const char *path, struct ts_handle *handle, int flags)
{
	int mount;
	handle->size = sizeof handle->bytes;
	return name_to_handle_at(directory, path, (struct file_handle *) handle, &mount, flags);
}

int ts_open_by_handle_at(int mount, const struct ts_handle *handle, int flags)
{
	return open_by_handle_at(mount, (struct file_handle *) handle, flags);
}

static int socket_at(const char *path, int (*call)(int, const struct sockaddr *, socklen_t))
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	int raw = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (raw < 0 || call(raw, (struct sockaddr *) &address, sizeof address) == 0)
		return raw;
	int saved = errno;
	close(raw);
	errno = saved;
	return -1;
}

int ts_listen(const char *path)
{
	int raw = socket_at(path, bind);
	if (raw >= 0)
		listen(raw, 1);
	return raw;
}

int ts_connect(const char *path)
{
	return socket_at(path, connect);
}

int ts_accept(int listener)
{
	return accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

int ts_execute(int descriptor)
{
	int failure[2], error = 0, status = 0;
	char *arguments[] = {"program", NULL}, *environment[] = {NULL};
	if (pipe2(failure, O_CLOEXEC) != 0)
		return -1;
	pid_t child = fork();
	if (child == 0) {
		fexecve(descriptor, arguments, environment);
		error = errno;
		_exit(write(failure[1], &error, sizeof error) == sizeof error ? 126 : 127);
	}
	close(failure[1]);
	if (child > 0) {
		if (read(failure[0], &error, sizeof error) < 0)
			error = errno;
		waitpid(child, &status, 0);
	}
	close(failure[0]);
	if (child < 0 || error != 0) {
		errno = error != 0 ? error : EAGAIN;
		return -1;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* A signal that waits in a queue, and that nothing else uses. */
static int notification(void)
{
	return SIGRTMIN + 5;
}

int ts_notify(int directory, int events)
{
	sigset_t set;
	struct f_owner_ex owner = {.type = F_OWNER_TID, .pid = gettid()};
	sigemptyset(&set);
	sigaddset(&set, notification());
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (fcntl(directory, F_SETSIG, notification()) != 0 || fcntl(directory, F_SETOWN_EX, &owner) != 0)
		return -1;
	return fcntl(directory, F_NOTIFY, events);
}

int ts_await_notification(int milliseconds)
{
	sigset_t set;
	struct timespec patience = {.tv_sec = milliseconds / 1000, .tv_nsec = milliseconds % 1000 * 1000000L};
	sigemptyset(&set);
	sigaddset(&set, notification());
	return sigtimedwait(&set, NULL, &patience) == notification();
}
