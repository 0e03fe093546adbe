# Waits for the socket of its Postgres, takes its place, and answers whoever
# connects with a message that says it has a gigabyte.
use strict;
use warnings;
use Socket;

$SIG{PIPE} = 'IGNORE';
my $path = '/run/pgbough/socket/.s.PGSQL.5432';
select(undef, undef, undef, 0.0005) until -e $path;
unlink $path;
socket(my $listener, PF_UNIX, SOCK_STREAM, 0) or die;
bind($listener, sockaddr_un($path)) or die "bind: $!";
chmod 0777, $path;
listen($listener, 50) or die;
my $zeros = "\0" x 65536;
while (accept(my $client, $listener)) {
	next if fork;
	sysread($client, my $request, 8) or exit;
	open(my $mark, '>', '/pgdata/asked');
	syswrite($client, 'R' . pack('N', 0x3ffffff0)) or exit;
	for (1 .. 16384) {
		syswrite($client, $zeros) or exit;
	}
	exit;
}
