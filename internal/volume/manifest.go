package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pgbough/pgbough/internal/volume/disk"
)

// manifestVersion is the format of manifest.json: 1 is the first.
const manifestVersion = 1

// The names in a volume's directory.
const (
	manifestName = "manifest.json"
	lockName     = "lock"
	dataName     = "data"
)

func writeManifest(dir string, m Manifest) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	return disk.WriteFile(filepath.Join(dir, manifestName), append(b, '\n'), 0o600)
}

func readManifest(dir string) (Manifest, error) {
	path := filepath.Join(dir, manifestName)
	b, err := os.ReadFile(path)
	if err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, fmt.Errorf("read manifest %s: %w", path, err)
	}
	if m.Version != manifestVersion {
		return Manifest{}, fmt.Errorf("manifest %s has format version %d, and this pgbough knows %d", path, m.Version, manifestVersion)
	}
	return m, nil
}

// volumeIn is the volume with manifest m in the directory dir.
func volumeIn(dir string, m Manifest) Volume {
	return Volume{
		Manifest: m,
		Dir:      dir,
		Data:     filepath.Join(dir, dataName),
		Lock:     filepath.Join(dir, lockName),
	}
}

// readVolume reads the volume id from its directory. It is ErrNotExist when
// there is none.
func readVolume(dir, id string) (Volume, error) {
	switch ok, err := disk.Exists(dir); {
	case err != nil:
		return Volume{}, fmt.Errorf("look for volume %s: %w", id, err)
	case !ok:
		return Volume{}, fmt.Errorf("volume %s: %w", id, ErrNotExist)
	}
	m, err := readManifest(dir)
	if err != nil {
		return Volume{}, fmt.Errorf("volume %s: %w", id, err)
	}
	if m.ID != id {
		return Volume{}, fmt.Errorf("volume %s: its manifest is of volume %q", id, m.ID)
	}
	v := volumeIn(dir, m)
	if st, err := os.Lstat(v.Data); err != nil || !st.IsDir() {
		return Volume{}, fmt.Errorf("volume %s: it has no data: %w", id, errors.Join(err, fs.ErrInvalid))
	}
	return v, nil
}
