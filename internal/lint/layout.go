package lint

// Current is the layout of this module: docs/architecture.md in a form that a
// test can hold it to.
func Current() Layout {
	return Layout{
		Layers:      layers(),
		TestSupport: []string{"internal/catalog/catalogtest", "internal/httpapi/httpapitest", "internal/lint", "internal/pgtest", "internal/volume/volumetest", "bench/...", "test/..."},
		Wiring:      []string{"cmd/pgbough/server.go", "cmd/pgbough/endpoint.go", "cmd/pgbough/front.go", "cmd/pgbough/uninstall.go"},
		Exceptions:  exceptions(),
		Owners:      owners(),
		Skips: []Skip{
			{"internal/volume/storage", "plain", "it is about a file system that cannot clone; where the tests run on one that can there is nothing to try"},
			{"internal/source", "TestICU", "a database's own locale can be ICU only since 15"},
			{"test/e2e", "noSecrets", "the copy that it compares with was not made, which has failed the test already"},
		},
	}
}

func layers() []Layer {
	return []Layer{
		{Name: "nouns", Dirs: []string{"."}},
		{Name: "leaves", Dirs: []string{
			"internal/credential", "internal/link", "internal/neonapi", "internal/postgres", "internal/replication",
			"internal/sandbox", "internal/schema", "internal/source", "internal/volume/...",
		}},
		{Name: "services", Dirs: []string{
			"internal/archive", "internal/catalog", "internal/compute", "internal/follower", "internal/operation", "internal/quarantine",
		}},
		{Name: "branches", Dirs: []string{"internal/branch"}},
		{
			Name: "edges", Dirs: []string{"client", "internal/httpapi", "internal/metrics"},
			Only: []string{".", "internal/neonapi"},
			Why:  "an edge knows the nouns and the wire, and declares what it needs as an interface",
		},
		{
			Name: "proxy", Dirs: []string{"internal/pgproxy"},
			Only: []string{".", "internal/credential"},
			Why:  "it is an edge too, to which clients prove who they are before anything else of the server hears of them",
		},
		{
			Name: "front", Dirs: []string{"internal/front"},
			Only: []string{".", "internal/credential", "internal/httpapi", "internal/link", "internal/pgproxy"},
			Why:  "it is both edges in a process without rights, and asks the rest of the server through an interface",
		},
		{
			Name: "commands", Dirs: []string{"cmd/..."},
			Only: []string{".", "client", "internal/neonapi"},
			Why:  "a command does nothing that another client of the API could not do",
		},
	}
}

func exceptions() []Exception {
	return []Exception{
		{"internal/sandbox", "internal/postgres", "it implements the Launcher that package postgres declares for whoever starts one"},
		{"internal/source", "internal/postgres", "check compares production with the binaries that are installed here"},
		{"internal/volume", "internal/volume/disk", "durable writes and free space, which the drivers need too"},
		{"internal/volume/btrfs", "internal/volume/...", "a driver implements the port, on what drivers share"},
		{"internal/volume/copydir", "internal/volume/...", "a driver implements the port, on what drivers share"},
		{"internal/volume/reflink", "internal/volume/...", "a driver implements the port, on what drivers share"},
		{"internal/volume/zfs", "internal/volume/...", "a driver implements the port, on what drivers share"},
		{"internal/volume/image", "internal/volume/disk", "an image file is made with durable writes"},
		{"internal/volume/storage", "internal/volume/...", "it chooses the driver, so it knows all of them"},
	}
}

// owners holds libraries to the packages that they are for, so that one of them
// can be replaced in one place. What is not listed may not be imported.
func owners() []Owner {
	return []Owner{
		{"github.com/aymanbagabas/go-udiff", []string{"internal/schema"}, "what differs is written as lines in one place"},
		{"github.com/google/go-cmp", nil, "comparing is for tests"},
		{"github.com/hanwen/go-fuse/v2", nil, "a file system that stops answering is for tests"},
		{"github.com/jackc/pgx/v5", []string{
			"internal/compute", "internal/follower", "internal/postgres", "internal/quarantine", "internal/replication", "internal/schema", "internal/source",
			"internal/branch",  // tells a server's error from a broken connection
			"internal/httpapi", // reads the connection string of a request
			"internal/pgproxy", // the messages of the protocol
		}, "talking to a Postgres"},
		{"github.com/klauspost/compress", []string{"internal/archive"}, "what is kept compressed is kept in one place"},
		{"github.com/moby/sys/mountinfo", []string{"internal/volume/...", "internal/sandbox"}, "only the pool and sandboxes mount"},
		{"github.com/oklog/run", []string{"internal/front"}, "what serves clients is a group of actors, put together in one place"},
		{"github.com/opencontainers/cgroups", []string{"internal/sandbox"}, "what limits a sandbox is set where it is made"},
		{"github.com/prometheus/client_golang", []string{"internal/metrics"}, "what is measured is named in one place"},
		{"github.com/rogpeppe/go-internal", nil, "scripts of the command line are tests"},
		{"github.com/spf13/cobra", []string{"cmd/pgbough"}, "the command line is parsed in one place"},
		{"github.com/vbauerster/mpb/v8", []string{"cmd/pgbough"}, "only commands talk to a terminal"},
		{"github.com/xdg-go/scram", []string{"internal/credential"}, "proving a password is done in one place"},
		{"golang.org/x/sync", []string{"internal/...", "cmd/pgbough", "bench"}, "groups and limits of goroutines"},
		{"golang.org/x/sys", []string{
			"internal/archive", "internal/branch", "internal/catalog", "internal/compute", "internal/credential", "internal/follower", "internal/front", "internal/link", "internal/postgres",
			"internal/replication", "internal/sandbox", "internal/volume/...", "cmd/pgbough",
			"internal/pgproxy", // epoll, and sockets that nobody waits for
		}, "system calls that package os does not have"},
		{"golang.org/x/term", []string{"cmd/pgbough"}, "only commands talk to a terminal"},
		{"golang.org/x/time", []string{"internal/...", "cmd/pgbough"}, "limits of rates"},
		{"modernc.org/sqlite", []string{"internal/catalog"}, "what is durable is in the catalog, and SQL to it nowhere else"},
		{"os/exec", []string{
			"internal/front", // this binary again
			"internal/postgres", "internal/sandbox", "internal/source", "internal/volume/image", "internal/volume/storage",
			"internal/volume/zfs", // whose commands are its interface
			"cmd/pgbough",         // psql, and the command of pgbough run
		}, "a process of another program is started by few, with arguments and never through a shell"},
		{"plugin", nil, "no code is loaded at run time"},
	}
}
