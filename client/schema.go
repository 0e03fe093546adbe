package client

import (
	"context"
	"net/http"
	"net/url"
)

// Schema writes the schema of a database of a branch as DDL; an empty database is
// the project's default.
func (c *Client) Schema(ctx context.Context, project, branch, database string) (Schema, error) {
	return ask[Schema](ctx, c, http.MethodGet, path("projects", project, "branches", branch)+"/schema", given("db_name", database), nil)
}

// CompareSchema tells how the schema of a branch differs from that of base; an
// empty one is the branch's parent.
func (c *Client) CompareSchema(ctx context.Context, project, branch, base, database string) (SchemaComparison, error) {
	q := given("db_name", database)
	if base != "" {
		q.Set("base_branch_id", base)
	}
	return ask[SchemaComparison](ctx, c, http.MethodGet, path("projects", project, "branches", branch)+"/compare_schema", q, nil)
}

func given(name, value string) url.Values {
	if value == "" {
		return url.Values{}
	}
	return url.Values{name: {value}}
}
