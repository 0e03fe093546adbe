package volume

import (
	"context"
	"fmt"

	"github.com/pgbough/pgbough"
	"github.com/pgbough/pgbough/internal/volume/disk"
)

// Space tells how full the pool is.
func (p *Pool) Space() (Space, error) {
	pool, err := disk.SpaceOf(p.cfg.Dir)
	if err != nil {
		return Space{}, fmt.Errorf("measure pool: %w", err)
	}
	if p.cfg.Size != 0 {
		pool.Size = disk.Bytes(p.cfg.Size)
		pool.Used = max(0, pool.Size-pool.Free)
	}
	free := pool.Free
	if p.cfg.Backing != "" {
		backing, err := disk.SpaceOf(p.cfg.Backing)
		if err != nil {
			return Space{}, fmt.Errorf("measure disk of the pool: %w", err)
		}
		free = min(free, backing.Free)
	}
	return Space{
		Size:    int64(pool.Size),
		Used:    int64(pool.Used),
		Free:    max(0, int64(free)-p.cfg.Reserve),
		Reserve: p.cfg.Reserve,
	}, nil
}

// CheckSpace refuses with ENoSpace when need bytes more would touch the
// reserve. Nothing is set aside: it is for deciding whether to begin.
func (p *Pool) CheckSpace(need int64) error {
	space, err := p.Space()
	if err != nil {
		return err
	}
	if need < space.Free || need == 0 && space.Free > 0 {
		return nil
	}
	return pgbough.Errorf(pgbough.ENoSpace, "the pool is too full: %v are needed, and of %v there are %v free beside the reserve of %v for the followers",
		disk.Bytes(need), disk.Bytes(space.Size), disk.Bytes(space.Free), disk.Bytes(space.Reserve)).
		WithHint("delete branches that nobody needs (pgbough branch list shows their sizes)")
}

// CheckClone is CheckSpace for a clone of the volume src and more bytes on top.
func (p *Pool) CheckClone(ctx context.Context, src string, more int64) error {
	v, err := p.Get(src)
	if err != nil {
		return err
	}
	cost, err := p.cfg.Driver.CloneCost(ctx, v.Data)
	if err != nil {
		return fmt.Errorf("estimate a clone of volume %s: %w", src, err)
	}
	return p.CheckSpace(cost + more)
}
