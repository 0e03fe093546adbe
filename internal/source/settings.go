package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough/internal/postgres"
)

// readSettings turns the rows of settingsSQL into settings. A value that this
// connection has from its role or database (ALTER ROLE, ALTER DATABASE) or that it
// was opened with hides what the server would give to others; that is looked up in the server's files.
// Where it may not read those, the built-in default stands in, and Source still
// says where the hidden value came from.
func readSettings(ctx context.Context, pg *pgconn.PgConn, r *pgconn.Result) ([]postgres.Setting, error) {
	if r.Err != nil {
		return nil, fmt.Errorf("read production's settings: %w", r.Err)
	}
	settings := make([]postgres.Setting, 0, len(r.Rows))
	hidden := map[string]int{}
	for _, row := range r.Rows {
		v := postgres.Setting{
			Name: string(row[0]), Value: string(row[1]), Unit: string(row[2]), Category: string(row[3]),
			Context: string(row[4]), Source: string(row[5]), VarType: string(row[6]),
		}
		switch v.Source {
		case "global", "database", "user", "database user", "client":
			hidden[v.Name] = len(settings)
			v.Value = string(row[7])
		}
		settings = append(settings, v)
	}
	if len(hidden) == 0 {
		return settings, nil
	}
	files, err := fileSettings(ctx, pg)
	if err != nil {
		return nil, err
	}
	for name, i := range hidden {
		if v, ok := files[name]; ok {
			settings[i].Value, settings[i].Source = v, "configuration file"
			settings[i].Unit = inlineUnit(settings[i])
		} else if files != nil {
			settings[i].Source = "default"
		}
	}
	return settings, nil
}

// inlineUnit is the unit that goes with a value from a file: values there may
// carry their own ("64MB"), and then there is none to add.
func inlineUnit(v postgres.Setting) string {
	for _, c := range v.Value {
		if (c < '0' || c > '9') && c != '-' && c != '.' {
			return ""
		}
	}
	return v.Unit
}

// fileSettings are the values in the server's configuration files, nil when the
// role may not see them.
func fileSettings(ctx context.Context, pg *pgconn.PgConn) (map[string]string, error) {
	const allowed = `SELECT has_table_privilege('pg_file_settings', 'SELECT') AND has_function_privilege('pg_show_all_file_settings()', 'EXECUTE')`
	may := pg.ExecParams(ctx, allowed, nil, nil, nil, nil).Read()
	if may.Err != nil {
		return nil, fmt.Errorf("ask for the privilege to read production's files: %w", may.Err)
	}
	if string(may.Rows[0][0]) != "t" {
		return nil, nil
	}
	const sql = `SELECT DISTINCT ON (name) name, setting FROM pg_file_settings WHERE error IS NULL AND name IS NOT NULL ORDER BY name, seqno DESC`
	r := pg.ExecParams(ctx, sql, nil, nil, nil, nil).Read()
	if r.Err != nil {
		return nil, fmt.Errorf("read the settings in production's files: %w", r.Err)
	}
	files := map[string]string{}
	for _, row := range r.Rows {
		files[string(row[0])] = string(row[1])
	}
	return files, nil
}
