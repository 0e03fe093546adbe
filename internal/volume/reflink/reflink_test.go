package reflink_test

import (
	"testing"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/reflink"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
)

func TestOnXFS(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) (volume.Driver, string) {
		return reflink.Driver{}, volumetest.Mount(t, image.XFS, 400*disk.MiB)
	})
}

func TestOnBtrfs(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) (volume.Driver, string) {
		return reflink.Driver{}, volumetest.Mount(t, image.Btrfs, 400*disk.MiB)
	})
}
