/*
 * A library for shared_preload_libraries of Postgres 15 that pgbough has never
 * heard of. It starts a background worker as soon as its server may write;
 * every second a new one calls 127.0.0.1:PORT and says the server's
 * cluster_name. It is compiled without the server's headers, which are a large
 * package: what it needs of them is declared here.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* fmgr.h */
struct magic {
	int len, version, funcmaxargs, indexmaxkeys, namedatalen, float8byval;
	char abi_extra[32];
};

const struct magic *Pg_magic_func(void)
{
	static const struct magic data = {sizeof(struct magic), 1500, 100, 32, 64, 1, "PostgreSQL"};

	return &data;
}

/* bgworker.h */
typedef struct {
	char name[96], type[96];
	int flags, start_time, restart_time;
	char library_name[96], function_name[96];
	uintptr_t main_arg;
	char extra[128];
	pid_t notify_pid;
} BackgroundWorker;

extern void RegisterBackgroundWorker(BackgroundWorker *worker);
extern void proc_exit(int code) __attribute__((noreturn));
extern char *cluster_name;

void outside_main(uintptr_t arg)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	(void) arg;
	if (connect(fd, (struct sockaddr *) &to, sizeof to) == 0) {
		ssize_t n = write(fd, cluster_name, strlen(cluster_name));

		(void) n;
	}
	proc_exit(1); /* so that the postmaster starts the next one */
}

void _PG_init(void)
{
	/* BGWORKER_SHMEM_ACCESS, BgWorkerStart_RecoveryFinished, one second */
	BackgroundWorker w = {.name = "outside", .type = "outside", .flags = 1, .start_time = 2, .restart_time = 1, .function_name = "outside_main"};

	strcpy(w.library_name, LIBRARY);
	RegisterBackgroundWorker(&w);
}
