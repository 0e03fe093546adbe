package httpapi

import (
	"context"
	"io"

	"github.com/pgbough/pgbough"
)

// Service is all that the API can do, in pgbough's nouns.
//
// A project or branch is named by its id or its name; where both exist, the id
// wins. What a Service returns holds no secret except where it says so.
// Failures are *pgbough.Error; any other error is a fault of pgbough that is
// logged and not shown.
//
// A method that returns an Operation returns as soon as the operation is
// durable. Its zero value means that there was nothing to do. All methods may
// be called at the same time.
type Service interface {
	// Healthy is nil while the server can serve.
	Healthy(ctx context.Context) error
	Status(ctx context.Context) (pgbough.Status, error)
	// Check looks at everything that Attach would need and changes nothing. That
	// production cannot be reached is a finding, not an error.
	Check(ctx context.Context, req pgbough.CheckRequest) (pgbough.CheckReport, error)

	// Attach makes a project. Its operation is finished when the follower streams
	// and a spare is ready.
	Attach(ctx context.Context, req pgbough.AttachRequest) (pgbough.Project, pgbough.Operation, error)
	Projects(ctx context.Context) ([]pgbough.Project, error)
	Project(ctx context.Context, project string) (pgbough.Project, error)
	DeleteProject(ctx context.Context, project string) (pgbough.Project, pgbough.Operation, error)
	SetSource(ctx context.Context, project string, req pgbough.SourceRequest) (pgbough.Project, pgbough.Operation, error)

	// ChangeProject changes all that is asked for, or nothing.
	ChangeProject(ctx context.Context, project string, change pgbough.ProjectChange) (pgbough.Project, error)
	// History is how far back the project can be branched.
	History(ctx context.Context, project string) (pgbough.History, error)

	CreateBranch(ctx context.Context, project string, req pgbough.CreateRequest) (pgbough.Created, error)
	Branches(ctx context.Context, project string) ([]pgbough.BranchView, error)
	Branch(ctx context.Context, project, branch string) (pgbough.BranchView, error)
	// Unsized is Branch without its sizes: measuring them can take longer than
	// making the branch did.
	Unsized(ctx context.Context, project, branch string) (pgbough.BranchView, error)
	// UpdateBranch changes all that is asked for, or nothing.
	UpdateBranch(ctx context.Context, project, branch string, change pgbough.BranchChange) (pgbough.BranchView, error)
	// Suspend and Wake take the id of the branch's endpoint, too. There is no
	// operation if there is nothing to do.
	Suspend(ctx context.Context, project, branch string) (pgbough.BranchView, pgbough.Operation, error)
	Wake(ctx context.Context, project, branch string) (pgbough.BranchView, pgbough.Operation, error)
	// DeleteBranch refuses a branch that has children unless cascade is set.
	DeleteBranch(ctx context.Context, project, branch string, cascade bool) (pgbough.BranchView, pgbough.Operation, error)
	// Roles lists the login roles of a branch with their passwords.
	Roles(ctx context.Context, project, branch string) ([]pgbough.Role, error)
	// Connection tells how to connect to a branch. An empty role or database is
	// the project's default.
	Connection(ctx context.Context, project, branch, role, database string) (pgbough.Connection, error)
	// Log opens the log of a branch's Postgres from its beginning. With follow
	// the reader waits for more at the end; it ends when ctx does.
	Log(ctx context.Context, project, branch string, follow bool) (io.ReadCloser, error)
	// Schema writes the schema of a database of a branch as DDL, and CompareSchema
	// tells how it differs from another branch's. An empty database is the project's
	// default. A branch that sleeps is woken.
	Schema(ctx context.Context, project, branch, database string) (string, error)
	CompareSchema(ctx context.Context, project string, c pgbough.Comparison) (pgbough.SchemaComparison, error)

	// Operations lists the operations of a project, or of all for "".
	Operations(ctx context.Context, project string) ([]pgbough.Operation, error)
	// Operation finds an operation also when its project is gone.
	Operation(ctx context.Context, id string) (pgbough.Operation, error)
	// WaitOperation returns the operation when it is done, or as it is when ctx
	// ends, which is no error. The error of an operation that failed is why it
	// failed, with its code as far as that is known; an error with a zero
	// Operation is one of WaitOperation itself.
	WaitOperation(ctx context.Context, id string) (pgbough.Operation, error)

	// Pool is the pool with all its volumes.
	Pool(ctx context.Context) (pgbough.PoolStatus, error)
	// ResizePool makes the pool size bytes large, if it is one that has a size.
	ResizePool(ctx context.Context, size int64) (pgbough.PoolStatus, error)
	// Prune removes the volumes that the catalog does not know, or with dryRun
	// only tells which, and returns them.
	Prune(ctx context.Context, dryRun bool) ([]pgbough.VolumeStatus, error)

	// CreateKey makes an API key; the second result is what is shown for it, and
	// cannot be had again.
	CreateKey(ctx context.Context, req pgbough.KeyRequest) (pgbough.APIKey, string, error)
	// Keys lists all API keys that CreateKey has made and nobody revoked.
	Keys(ctx context.Context) ([]pgbough.APIKey, error)
	// RevokeKey ends an API key, by its id or name, when it returns.
	RevokeKey(ctx context.Context, key string) (pgbough.APIKey, error)
}
