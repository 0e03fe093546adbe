package btrfs_test

import (
	"testing"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/btrfs"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
)

func TestDriver(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) (volume.Driver, string) {
		return btrfs.Driver{}, volumetest.Mount(t, image.Btrfs, 400*disk.MiB)
	})
}
