package httpapi_test

import "testing"

func TestSchemaOfAPastMomentIsRefused(t *testing.T) {
	s := withShop(t)
	for _, query := range []string{
		"/schema?lsn=0/123", "/schema?timestamp=2026-09-01T00:00:00Z",
		"/compare_schema?base_lsn=0/123", "/compare_schema?base_timestamp=2026-09-01T00:00:00Z", "/compare_schema?lsn=0/123",
	} {
		s.call(t, "GET", fix+query, "", 400)
	}
}

func TestCompareSchema(t *testing.T) {
	s := withShop(t)
	got := s.call(t, "GET", fix+"/compare_schema?db_name=stats", "", 200)
	if at(got, "base_branch") != "main" || at(got, "database") != "stats" || at(got, "changes", 0, "name") != "public.orders.note" || at(got, "diff") == "" {
		t.Errorf("compared with the parent: %v", got)
	}
	same := s.call(t, "GET", fix+"/compare_schema?base_branch_id=fix/login", "", 200)
	if changes, ok := same["changes"].([]any); !ok || len(changes) != 0 || same["diff"] != "" {
		t.Errorf("compared with itself: %v", same)
	}
}
