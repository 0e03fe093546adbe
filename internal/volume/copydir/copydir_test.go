package copydir_test

import (
	"testing"

	"github.com/pgbough/pgbough/internal/volume"
	"github.com/pgbough/pgbough/internal/volume/copydir"
	"github.com/pgbough/pgbough/internal/volume/disk"
	"github.com/pgbough/pgbough/internal/volume/image"
	"github.com/pgbough/pgbough/internal/volume/volumetest"
)

func TestDriver(t *testing.T) {
	volumetest.Run(t, func(t *testing.T) (volume.Driver, string) {
		return copydir.Driver{}, volumetest.Mount(t, image.XFS, 512*disk.MiB)
	})
}
