package httpapi

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/neonapi"
)

// domain is what follows an endpoint's id in a host name when the Service
// gives none.
const domain = "pgbough.localhost"

func wireProject(p pgbough.Project) neonapi.Project {
	created := p.CreatedAt.UTC()
	return neonapi.Project{
		ID: p.ID, Name: p.Name,
		PlatformID: neonapi.PlatformID, RegionID: neonapi.RegionID, Provisioner: neonapi.Provisioner,
		CreationSource: neonapi.CreationSource, OwnerID: neonapi.OwnerID, ProxyHost: domain,
		PgVersion: p.Source.Major, StorePasswords: true,
		CreatedAt: created, UpdatedAt: created,
		ConsumptionPeriodStart: created, ConsumptionPeriodEnd: created,
		State: p.State, RootBranchID: p.RootBranchID,
		DefaultRole: p.DefaultRole, DefaultDatabase: p.DefaultDatabase,
		Source: wireSource(p.Source), HistoryRetentionSeconds: int64(p.History.Seconds()),
	}
}

func wireHistory(h pgbough.History) neonapi.History {
	out := neonapi.History{
		ProjectID: h.Project.ID, Project: h.Project.Name, RetentionSeconds: int64(h.Window.Seconds()),
		FromLSN: h.From, FromTimestamp: utc(h.FromTime), ToLSN: h.To, ToTimestamp: utc(h.ToTime),
		WALBytes: h.WALBytes, WALRawBytes: h.RawBytes, Points: []neonapi.HistoryPoint{}, Gaps: []neonapi.Gap{}, Notes: []string{},
	}
	for _, p := range h.Points {
		out.Points = append(out.Points, neonapi.HistoryPoint{VolumeID: p.VolumeID, LSN: p.LSN, RedoLSN: p.Redo, Timeline: p.Timeline, Timestamp: utc(p.Time), CreatedAt: p.CreatedAt.UTC()})
	}
	for _, g := range h.Gaps {
		out.Gaps = append(out.Gaps, neonapi.Gap{FromLSN: g.From, ToLSN: g.To})
	}
	out.Notes = append(out.Notes, h.Notes...)
	return out
}

// wireSource shows where production is and who asks it. Of the connection
// string only these parts get out, so that no password can.
func wireSource(s pgbough.Source) neonapi.Source {
	out := neonapi.Source{
		Hosts:           []string{},
		PostgresVersion: s.Version, Timeline: s.Timeline,
		Slot: s.Slot, RestoreCommand: s.RestoreCommand,
		MaxRateBytes: s.MaxRate, AcceptUnlimitedSlot: s.AcceptUnlimitedSlot,
	}
	if s.SystemID != 0 {
		out.SystemID = strconv.FormatUint(s.SystemID, 10)
	}
	if s.ConnString == "" {
		return out
	}
	config, err := pgconn.ParseConfig(s.ConnString)
	if err != nil {
		return out // Attach and SetSource refuse such; there is nothing safe to show
	}
	out.Role, out.Database = config.User, config.Database
	add := func(host string, port uint16) {
		if !strings.HasPrefix(host, "/") {
			host = net.JoinHostPort(host, strconv.Itoa(int(port)))
		}
		if n := len(out.Hosts); n == 0 || out.Hosts[n-1] != host { // TLS and plain are two fallbacks of one host
			out.Hosts = append(out.Hosts, host)
		}
	}
	add(config.Host, config.Port)
	for _, f := range config.Fallbacks {
		add(f.Host, f.Port)
	}
	return out
}

func wireReport(r pgbough.CheckReport) neonapi.CheckReport {
	out := neonapi.CheckReport{OK: true, Findings: []pgbough.Finding{}}
	for _, f := range r.Findings {
		out.OK = out.OK && f.Status != pgbough.FindingFail
		out.Findings = append(out.Findings, f)
	}
	if r.Facts.Version != "" {
		out.Facts = &neonapi.CheckFacts{
			SystemID:        strconv.FormatUint(r.Facts.SystemID, 10),
			PostgresVersion: r.Facts.Version,
			Timeline:        r.Facts.Timeline,
			DataBytes:       r.Facts.DataBytes,
			Databases:       r.Facts.Databases,
		}
	}
	return out
}

func wireBranch(v pgbough.BranchView) neonapi.Branch {
	b := neonapi.Branch{
		ID: v.ID, ProjectID: v.ProjectID, ParentID: v.ParentID, Name: v.Name,
		CurrentState: string(v.State), StateChangedAt: v.CreatedAt.UTC(),
		ParentTimestamp: utc(v.ParentTime), LogicalSize: v.LogicalBytes,
		CreationSource: neonapi.CreationSource,
		Primary:        v.ParentID == "", Default: v.ParentID == "",
		CreatedAt: v.CreatedAt.UTC(), UpdatedAt: v.CreatedAt.UTC(), ExpiresAt: utc(v.ExpiresAt), Protected: v.Protected,
		ComputeState: string(v.Compute), OwnBytes: v.OwnBytes, LimitBytes: v.LimitBytes, LogicalBytes: v.LogicalBytes,
		Differences: v.Differences, Path: v.Path, Notes: v.Notes,
	}
	if v.ParentID != "" {
		b.InitSource = "parent-data"
	}
	if v.EndpointID != "" {
		b.SuspendTimeoutSeconds, b.LastActive = wireSuspendAfter(v.SuspendAfter), utc(v.Endpoint.LastActive)
		b.BehindBytes, b.Restarts, b.LastFailure, b.LastFailureAt = v.BehindBytes, v.Endpoint.Restarts, v.Endpoint.Failure, utc(v.Endpoint.FailedAt)
	}
	if v.ParentLSN != 0 {
		b.ParentLSN = v.ParentLSN.String()
	}
	return b
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// wireEndpoints are the endpoints of a branch: one, or none for the root.
func wireEndpoints(v pgbough.BranchView) []neonapi.Endpoint {
	if v.EndpointID == "" {
		return []neonapi.Endpoint{}
	}
	host := hostOf(v)
	return []neonapi.Endpoint{{
		ID: v.EndpointID, Host: host, ProxyHost: strings.TrimPrefix(host, v.EndpointID+"."),
		ProjectID: v.ProjectID, BranchID: v.ID, RegionID: neonapi.RegionID,
		Type: "read_write", CurrentState: string(v.Compute),
		AutoscalingLimitMinCU: 0.25, AutoscalingLimitMaxCU: 0.25,
		PoolerMode: "transaction", CreationSource: neonapi.CreationSource, Provisioner: neonapi.Provisioner,
		SuspendTimeoutSeconds: wireSuspendAfter(v.Endpoint.SuspendAfter), LastActive: utc(v.Endpoint.LastActive),
		CreatedAt: v.CreatedAt.UTC(), UpdatedAt: v.CreatedAt.UTC(),
	}}
}

// neverSuspend is Neon's word for it.
const neverSuspend = -1

func wireSuspendAfter(d time.Duration) float64 {
	switch d {
	case pgbough.SuspendByDefault:
		return 0
	case pgbough.SuspendNever:
		return neverSuspend
	}
	return d.Seconds()
}

func hostOf(v pgbough.BranchView) string {
	if v.Host != "" {
		return v.Host
	}
	return v.EndpointID + "." + domain
}

func wireRole(v pgbough.BranchView, r pgbough.Role, secret bool) neonapi.Role {
	role := neonapi.Role{BranchID: v.ID, Name: r.Name, CreatedAt: v.CreatedAt.UTC(), UpdatedAt: v.CreatedAt.UTC()}
	if secret {
		role.Password = r.Password
	}
	return role
}

func wireConnection(v pgbough.BranchView, c pgbough.Connection) neonapi.ConnectionDetails {
	host := hostOf(v)
	return neonapi.ConnectionDetails{
		ConnectionURI: c.URI,
		ConnectionParameters: neonapi.ConnectionParameters{
			Database: c.Database, Password: c.Password, Role: c.Role, Host: host, PoolerHost: host,
		},
		Libpq: wireLibpq(c),
	}
}

func wireLibpq(c pgbough.Connection) neonapi.Libpq {
	return neonapi.Libpq{
		Host: c.Host, Port: c.Port, User: c.Role, Password: c.Password,
		DBName: c.Database, Options: c.Options, SSLMode: c.SSLMode,
	}
}

// wireOperations is the list of operations that a mutation answers with.
func wireOperations(op pgbough.Operation) []neonapi.Operation {
	if op.ID == "" {
		return []neonapi.Operation{}
	}
	return []neonapi.Operation{wireOperation(op)}
}

func wireOperation(op pgbough.Operation) neonapi.Operation {
	out := neonapi.Operation{
		ID: op.ID, ProjectID: op.ProjectID, BranchID: op.BranchID,
		Action: op.Kind, Status: string(op.Status), Error: op.Error,
		CreatedAt: op.CreatedAt.UTC(), UpdatedAt: op.UpdatedAt.UTC(),
		TotalDurationMS: op.UpdatedAt.Sub(op.CreatedAt).Milliseconds(),
		Step:            op.Step,
	}
	if op.Progress != (pgbough.Progress{}) && !op.Status.Done() {
		out.Progress = &op.Progress
	}
	for _, s := range op.Steps {
		out.Steps = append(out.Steps, neonapi.Step{
			Name: s.Name, StartedAt: utc(s.StartedAt), FinishedAt: utc(s.FinishedAt),
			DurationMS: float64(s.Duration.Microseconds()) / 1000,
			Attempts:   s.Attempts, Error: s.Error, Note: s.Note,
		})
		out.FailuresCount += max(0, s.Attempts-1)
	}
	return out
}

// wireFailure is an operation with what is known of why it failed.
func wireFailure(op pgbough.Operation, failure error) neonapi.Operation {
	out := wireOperation(op)
	var told *pgbough.Error
	if errors.As(failure, &told) {
		out.Error, out.ErrorCode, out.Hint = told.Message, string(told.Code), told.Hint
	}
	return out
}

func wireStatus(s pgbough.Status) neonapi.Status {
	out := neonapi.Status{
		Version: s.Version, Projects: []neonapi.ProjectStatus{}, Pool: wirePool(s.Pool), Notes: []string{},
	}
	out.Notes = append(out.Notes, s.Notes...)
	for _, p := range s.Projects {
		out.Projects = append(out.Projects, neonapi.ProjectStatus{
			ID: p.Project.ID, Name: p.Project.Name, State: p.Project.State,
			Follower: wireFollower(p.Follower), Spares: wireSpares(p), Branches: p.Branches,
			Source: wireSource(p.Project.Source),
		})
	}
	return out
}

func wireFollower(f pgbough.FollowerStatus) neonapi.Follower {
	return neonapi.Follower{
		State: f.State, Reason: f.Reason,
		ReplayLSN: f.Replay, ReceivedLSN: f.Received, RedoLSN: f.Redo, Timeline: f.Timeline,
		SourceLSN: f.SourceLSN, AskedAt: utc(f.AskedAt),
		LagBytes: f.LagBytes, LagSeconds: f.LagSeconds,
	}
}

func wireSpares(p pgbough.ProjectStatus) neonapi.Spares {
	out := neonapi.Spares{Wanted: p.Wanted, List: []neonapi.Spare{}}
	for _, s := range p.Spares {
		if s.State == pgbough.SpareReady {
			out.Ready++
		}
		out.List = append(out.List, neonapi.Spare{
			VolumeID: s.VolumeID, State: s.State, RedoLSN: s.Redo,
			CreatedAt: s.CreatedAt.UTC(), ReadyAt: utc(s.ReadyAt),
		})
	}
	return out
}

func wirePool(p pgbough.PoolStatus) neonapi.Pool {
	return neonapi.Pool{
		Kind: p.Kind, Path: p.Path, Image: p.Image,
		SizeBytes: p.Size, UsedBytes: p.Used, FreeBytes: p.Free, ReserveBytes: p.Reserve,
	}
}

func wireVolumes(volumes []pgbough.VolumeStatus) []neonapi.Volume {
	out := []neonapi.Volume{}
	for _, v := range volumes {
		out = append(out, neonapi.Volume{
			ID: v.ID, Role: v.Role, Project: v.Project, Branch: v.Branch,
			OwnBytes: v.OwnBytes, LogicalBytes: v.LogicalBytes, Known: v.Known,
		})
	}
	return out
}
