package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgbough/pgbough"
)

// maxLimit is the largest page that Neon's clients ask for.
const maxLimit = 10000

// waitLimit is how long the request is ready to wait for its operation.
func waitLimit(r *http.Request, otherwise time.Duration) (time.Duration, error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, pgbough.Errorf(pgbough.EInvalid, "wait=%s is not a duration such as 30s", text)
	}
	return min(d, maxWait), nil
}

// wait waits for an operation to be done, up to limit. Its error is why the
// operation failed.
func (a *api) wait(ctx context.Context, op pgbough.Operation, limit time.Duration) (pgbough.Operation, error) {
	if op.ID == "" || op.Status == pgbough.OperationFinished || limit == 0 && !op.Status.Done() {
		return op, nil
	}
	if !op.Status.Done() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	waited, err := a.service.WaitOperation(ctx, op.ID)
	if waited.ID != "" && !waited.Status.Done() {
		err = nil // it goes on; that we stopped to wait is no failure of it
	}
	return waited, err
}

// waitGone waits as wait does for an operation that removes something. Where
// that was still being made, the operation is the one that made it: then its
// failure or its end by cancelling is what was wanted.
func (a *api) waitGone(ctx context.Context, op pgbough.Operation, limit time.Duration) (pgbough.Operation, error) {
	waited, err := a.wait(ctx, op, limit)
	if waited.Status.Done() && !strings.HasPrefix(waited.Kind, "delete_") {
		return waited, nil
	}
	return waited, err
}

// boolOf reads a parameter that is true or false.
func boolOf(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		return false, pgbough.Errorf(pgbough.EInvalid, "%s=%s is neither true nor false", name, text)
	}
	return b, nil
}

// order is one way to sort a list and to go on in it. The key of an item never
// changes, so pages stay right when items come and go between them.
type order struct{ newestFirst bool }

// key has a fixed width in its time, so that keys sort as text.
func (order) key(created time.Time, id string) string {
	return created.UTC().Format("20060102T150405.000000000") + "~" + id
}

// page sorts items and cuts the page out that the request asks for. Without a
// limit it is everything: several of Neon's clients know no pages. The second
// result is the cursor of the next page, if there is one.
func page[T any](r *http.Request, items []T, o order, key func(T) string) ([]T, string, error) {
	compare := strings.Compare
	if o.newestFirst {
		compare = func(a, b string) int { return strings.Compare(b, a) }
	}
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b T) int { return compare(key(a), key(b)) })
	if cursor := r.URL.Query().Get("cursor"); cursor != "" {
		items = slices.DeleteFunc(items, func(item T) bool { return compare(key(item), cursor) <= 0 })
	}
	text := r.URL.Query().Get("limit")
	if text == "" {
		return items, "", nil
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 1 || limit > maxLimit {
		return nil, "", pgbough.Errorf(pgbough.EInvalid, "limit=%s is not a number from 1 to %d", text, maxLimit)
	}
	if len(items) <= limit {
		return items, "", nil
	}
	return items[:limit], key(items[limit-1]), nil
}
