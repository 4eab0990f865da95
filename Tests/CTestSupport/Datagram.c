#include "CTestSupport.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int ts_datagram_socket(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	int raw = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (raw < 0)
		return -1;
	if (bind(raw, (struct sockaddr *) &address, sizeof address) != 0) {
		int saved = errno;
		close(raw);
		errno = saved;
		return -1;
	}
	return raw;
}

ssize_t ts_receive(int socket, void *bytes, size_t room, int milliseconds)
{
	struct pollfd entry = {.fd = socket, .events = POLLIN};
	int ready = poll(&entry, 1, milliseconds);
	if (ready <= 0)
		return ready;
	return recv(socket, bytes, room, 0);
}
