package client

import "github.com/pgbough/pgbough/internal/neonapi"

// What the API is asked and answers. The JSON is Neon's API v2 with pgbough's
// additions.
type (
	// APIKey is somebody who may use the API.
	APIKey = neonapi.APIKey
	// Branch is a node of a project's tree.
	Branch = neonapi.Branch
	// BranchList answers GET /projects/{p}/branches.
	BranchList = neonapi.BranchList
	// BranchResponse answers GET, PATCH and DELETE of one branch.
	BranchResponse = neonapi.BranchResponse
	// CheckReport answers POST /check: everything that attach would need.
	CheckReport = neonapi.CheckReport
	// CheckRequest is the body of POST /check.
	CheckRequest = neonapi.CheckRequest
	// ConnectionDetails is one way to connect to a branch.
	ConnectionDetails = neonapi.ConnectionDetails
	// ConnectionURI answers GET /projects/{p}/connection_uri.
	ConnectionURI = neonapi.ConnectionURI
	// CreateBranch describes the branch that is wanted.
	CreateBranch = neonapi.CreateBranch
	// CreateBranchRequest is the body of POST /projects/{p}/branches.
	CreateBranchRequest = neonapi.CreateBranchRequest
	// CreateProjectRequest is the body of POST /projects.
	CreateProjectRequest = neonapi.CreateProjectRequest
	// CreateKeyRequest is the body of POST /api_keys.
	CreateKeyRequest = neonapi.CreateKeyRequest
	// CreatedKey answers POST /api_keys: only here the key is shown.
	CreatedKey = neonapi.CreatedKey
	// CreatedBranch answers POST /projects/{p}/branches.
	CreatedBranch = neonapi.CreatedBranch
	// CreatedProject answers POST /projects.
	CreatedProject = neonapi.CreatedProject
	// CreateEndpoint describes an endpoint that is wanted with a branch.
	CreateEndpoint = neonapi.CreateEndpoint
	// EndpointResponse answers GET, PATCH, start and suspend of one endpoint.
	EndpointResponse = neonapi.EndpointResponse
	// EndpointList answers GET .../endpoints.
	EndpointList = neonapi.EndpointList
	// History answers GET /projects/{p}/history: how far back a project can be branched.
	History = neonapi.History
	// Libpq holds the same connection as libpq's connection parameters, by libpq's names, for programs that are told by PGHOST and its like.
	Libpq = neonapi.Libpq
	// Operation is a durable, stepwise job.
	Operation = neonapi.Operation
	// OperationList answers GET /projects/{p}/operations and GET /operations, newest first.
	OperationList = neonapi.OperationList
	// OperationResponse answers GET of one operation.
	OperationResponse = neonapi.OperationResponse
	// Pool tells where the bytes are.
	Pool = neonapi.Pool
	// PoolResponse answers GET /pool.
	PoolResponse = neonapi.PoolResponse
	// Project is one production and all branches of it.
	Project = neonapi.Project
	// ProjectList answers GET /projects.
	ProjectList = neonapi.ProjectList
	// ProjectResponse answers GET, PATCH and DELETE of one project.
	ProjectResponse = neonapi.ProjectResponse
	// ProjectStatus is one project at one moment.
	ProjectStatus = neonapi.ProjectStatus
	// ResizeRequest is the body of POST /pool/resize.
	ResizeRequest = neonapi.ResizeRequest
	// PruneRequest is the body of POST /pool/prune.
	PruneRequest = neonapi.PruneRequest
	// PruneResponse answers POST /pool/prune: the volumes that were removed, or would be.
	PruneResponse = neonapi.PruneResponse
	// RevokedKey answers DELETE /api_keys/{key}.
	RevokedKey = neonapi.RevokedKey
	// Schema answers GET .../schema.
	Schema = neonapi.Schema
	// SchemaChange is one object that is not the same in both branches.
	SchemaChange = neonapi.SchemaChange
	// SchemaComparison answers GET .../compare_schema.
	SchemaComparison = neonapi.SchemaComparison
	// RoleList answers GET .../roles.
	RoleList = neonapi.RoleList
	// SetSourceRequest is the body of PATCH /projects/{p}/source.
	SetSourceRequest = neonapi.SetSourceRequest
	// Source is the production server of a project, without any secret.
	Source = neonapi.Source
	// SourceRequest says how to reach production and how to follow it.
	SourceRequest = neonapi.SourceRequest
	// Status answers GET /status: the whole server at one moment.
	Status = neonapi.Status
	// Step is what is known of one step of an operation.
	Step = neonapi.Step
	// UpdateProjectRequest is the body of PATCH /projects/{p}.
	UpdateProjectRequest = neonapi.UpdateProjectRequest
	// UpdateBranchRequest is the body of PATCH on a branch.
	UpdateBranchRequest = neonapi.UpdateBranchRequest
	// Volume is one volume of the pool.
	Volume = neonapi.Volume
)
