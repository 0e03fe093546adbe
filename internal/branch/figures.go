package branch

import (
	"context"

	"github.com/pgbough/pgbough"
)

// Healthy tells whether the server can answer: whether its catalog can be read.
func (s *Service) Healthy(ctx context.Context) error { return s.catalog.Ping(ctx) }

// Figures are the server in numbers. Unlike Status it looks at no volume.
func (s *Service) Figures(ctx context.Context) (pgbough.Figures, error) {
	f := pgbough.Figures{Wakes: s.computes.Wakes()}
	projects, err := s.catalog.Projects(ctx)
	if err != nil {
		return f, err
	}
	counts, err := s.catalog.CountBranches(ctx)
	if err != nil {
		return f, err
	}
	for _, p := range projects {
		n := counts[p.ID]
		pf := pgbough.ProjectFigures{Name: p.Name, Wanted: s.wantedOf(p.ID), Awake: n.Awake, Asleep: n.Asleep}
		pf.Follower.State = pgbough.FollowerStopped
		if f, err := s.followerOf(p.ID); err == nil {
			pf.Follower = f.Status()
		}
		spares, err := s.catalog.Spares(ctx, p.ID)
		if err != nil {
			return f, err
		}
		for _, sp := range spares {
			if sp.State == pgbough.SpareReady {
				pf.Ready++
			}
		}
		f.Projects = append(f.Projects, pf)
	}
	f.Pool, err = s.space()
	return f, err
}
