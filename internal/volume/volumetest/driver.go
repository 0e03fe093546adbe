package volumetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough/internal/volume/disk"
)

const mb = 1 << 20

// noise is n bytes that no file system can compress or share.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// describe lists a tree: one line an entry, with everything that a clone keeps.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		what := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %d %x", st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " -> " + target
		case unix.S_IFDIR:
		default:
			return nil
		}
		found[name] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func testCreate(t *testing.T, d *driven) {
	dir := d.create(t, "a")
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("a new volume holds %v (%v)", names, err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("a new volume has mode %v (%v), want 0700", st.Mode(), err)
	}
	if err := d.Create(t.Context(), dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second create: %v, want fs.ErrExist", err)
	}
}

func testCloneKeeps(t *testing.T, d *driven) {
	RequireRoot(t)
	src := d.create(t, "source")
	write(t, src+"/base/1/1259", noise(1, 3*mb+17))
	write(t, src+"/base/1/empty", nil)
	write(t, src+"/PG_VERSION", []byte("15\n"))
	write(t, src+"/name with\nnewline and \xff", []byte("x"))
	for _, dir := range []string{"pg_notify", "pg_replslot/nested/deep"} {
		if err := os.MkdirAll(filepath.Join(src, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := os.Create(src + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	_, errHead := sparse.WriteAt(noise(2, 8192), 4*mb)
	if err := errors.Join(errHead, sparse.Truncate(64*mb), sparse.Close()); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"pg_wal": "/nowhere/at/all", "inside": "base/1/1259", "pg_tblspc_1": "../../.."} {
		if err := os.Symlink(target, filepath.Join(src, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(src+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2020, 2, 3, 4, 5, 6, 789012345, time.UTC)
	for _, err := range []error{
		os.Lchown(src+"/base/1/1259", 64420, 64421),
		os.Lchown(src+"/pg_wal", 64420, 64420),
		os.Chmod(src+"/base/1/1259", 0o640|os.ModeSetgid),
		os.Chtimes(src+"/base/1/1259", old, old),
		os.Chtimes(src+"/pg_notify", old, old),
		os.Lchown(src, 64420, 64420),
		os.Chmod(src, 0o750),
		os.Chtimes(src, old, old),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := describe(t, src)
	dst := d.clone(t, "source", "copy")
	if diff := cmp.Diff(want, describe(t, dst)); diff != "" {
		t.Errorf("clone differs (-source +clone):\n%s", diff)
	}
	var st unix.Stat_t
	if err := unix.Stat(dst+"/sparse", &st); err != nil || st.Blocks*512 > mb {
		t.Errorf("the sparse file takes %d bytes in the clone (%v)", st.Blocks*512, err)
	}
}

func testIndependence(t *testing.T, d *driven) {
	src := d.create(t, "source")
	original := noise(1, 4*mb)
	write(t, src+"/base/1", original)
	write(t, src+"/base/2", original)
	dst := d.clone(t, "source", "copy")

	patch := func(path string, at int64, b []byte) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(b, at)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	patch(dst+"/base/1", mb, noise(2, 8192))
	patch(src+"/base/2", mb, noise(3, 8192))
	write(t, dst+"/only-in-clone", []byte("1"))
	write(t, src+"/only-in-source", []byte("1"))
	if err := os.Truncate(src+"/base/1", 8192); err != nil {
		t.Fatal(err)
	}

	if got := read(t, dst+"/base/2"); !bytes.Equal(got, original) {
		t.Error("a write to the source is seen in the clone")
	}
	want := bytes.Clone(original)
	copy(want[mb:], noise(2, 8192))
	if got := read(t, dst+"/base/1"); !bytes.Equal(got, want) {
		t.Error("the clone's own write or its rest is not as written")
	}
	if got := read(t, src+"/base/1"); !bytes.Equal(got, original[:8192]) {
		t.Error("a write to the clone is seen in the source")
	}
	for _, path := range []string{src + "/only-in-clone", dst + "/only-in-source"} {
		if ok, _ := disk.Exists(path); ok {
			t.Errorf("%s exists", path)
		}
	}
}

// testChain makes clones of clones, 8 deep, and destroys them in any order.
func testChain(t *testing.T, d *driven) {
	const depth = 8
	name := func(i int) string { return fmt.Sprintf("level%d", i) }
	write(t, d.create(t, name(0))+"/base/0", noise(0, 2*mb))
	want := []map[string]string{describe(t, d.path(name(0)))}
	for i := 1; i <= depth; i++ {
		dir := d.clone(t, name(i-1), name(i))
		write(t, fmt.Sprintf("%s/base/%d", dir, i), noise(uint64(i), mb))
		if err := os.Truncate(dir+"/base/0", int64(2*mb-i*8192)); err != nil {
			t.Fatal(err)
		}
		want = append(want, describe(t, dir))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	alive := rand.New(rand.NewPCG(seed, 0)).Perm(depth + 1)
	for len(alive) > 0 {
		d.destroy(t, name(alive[0]))
		alive = alive[1:]
		for _, i := range alive {
			if diff := cmp.Diff(want[i], describe(t, d.path(name(i)))); diff != "" {
				t.Fatalf("level %d changed (-before +after):\n%s", i, diff)
			}
		}
	}
}

// testUsage compares what usage says with what destroying really frees.
func testUsage(t *testing.T, d *driven) {
	const size, blocks = 48 * mb, 1500
	src := d.create(t, "source")
	write(t, src+"/base/1", noise(1, size))
	write(t, src+"/base/2", noise(2, size))
	d.clone(t, "source", "untouched")
	dst := d.clone(t, "source", "touched")
	f, err := os.OpenFile(dst+"/base/1", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range blocks { // as Postgres writes: blocks of 8 kB anywhere
		if _, err := f.WriteAt(noise(uint64(i), 8192), random.Int64N(size/8192)*8192); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	write(t, dst+"/base/3", noise(3, 5*mb))

	for _, name := range []string{"touched", "untouched"} {
		usage := d.usage(t, name)
		before := settledFree(t, d.dir)
		d.destroy(t, name)
		freed := settledFree(t, d.dir) - before
		t.Logf("%s: %.2f MB own, %.2f MB freed, %.2f MB logical", name,
			float64(usage.OwnBytes)/mb, float64(freed)/mb, float64(usage.LogicalBytes)/mb)
		if off := usage.OwnBytes - freed; max(off, -off) > freed/10+mb/2 { // half a MB of metadata
			t.Errorf("%s: usage says %d bytes, and its removal freed %d", name, usage.OwnBytes, freed)
		}
		if usage.LogicalBytes < 2*size || usage.LogicalBytes > 2*size*11/10 { // some count their metadata
			t.Errorf("%s: logical size %d, want about %d", name, usage.LogicalBytes, 2*size)
		}
	}
	// Nothing shares it any more.
	if usage := d.usage(t, "source"); usage.OwnBytes < 2*size || usage.OwnBytes > 2*size*21/20 {
		t.Errorf("source alone: own size %d, want %d", usage.OwnBytes, 2*size)
	}
}

// testFull fills the file system to the last byte and destroys then.
func testFull(t *testing.T, d *driven) {
	write(t, d.create(t, "source")+"/base/1", noise(1, 16*mb))
	before := settledFree(t, d.dir)
	filler := d.clone(t, "source", "filler")
	fill(t, filler)
	for i := range 5 { // metadata, too
		if err := d.Create(t.Context(), d.path(fmt.Sprint("more", i))); err != nil {
			t.Logf("create on the full file system: %v", err)
			break
		}
	}
	d.destroy(t, "filler")
	if freed := settledFree(t, d.dir); freed < before-8*mb {
		t.Errorf("%d bytes are free after the destroy, %d were before the filling", freed, before)
	}
	if got := read(t, d.path("source/base/1")); !bytes.Equal(got, noise(1, 16*mb)) {
		t.Error("the source was damaged")
	}
	d.destroy(t, "source")
}

// fill writes until not even an empty file fits, as a branch that runs away does.
func fill(t *testing.T, dir string) {
	t.Helper()
	chunk := noise(7, mb)
	for size := len(chunk); size > 0; size /= 16 {
		for i := 0; ; i++ {
			name := fmt.Sprintf("%s/fill-%d-%d", dir, size, i)
			err := writeBlocks(name, chunk[:size])
			if err == nil && i%32 == 0 {
				err = disk.SyncFileSystem(dir)
			}
			if errors.Is(err, unix.ENOSPC) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if i > 20_000 {
				break
			}
		}
	}
	_ = disk.SyncFileSystem(dir) // it may say that the file system is full
}

// writeBlocks writes a file as Postgres does, 8 kB at a time. (zfs-fuse aborts
// when a larger write fits only in part.)
func writeBlocks(name string, content []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	for block := range slices.Chunk(content, 8192) {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

func testHostile(t *testing.T, d *driven) {
	outside := t.TempDir()
	write(t, outside+"/secret", noise(1, mb))
	src := d.create(t, "source")
	for i, target := range []string{outside, outside + "/secret", "/", "..", "loop3"} {
		if err := os.Symlink(target, fmt.Sprintf("%s/loop%d", src, i)); err != nil {
			t.Fatal(err)
		}
	}
	dst := d.clone(t, "source", "copy")
	for _, dir := range []string{src, dst} {
		if target, err := os.Readlink(dir + "/loop0"); err != nil || target != outside {
			t.Errorf("link in %s: %q, %v", dir, target, err)
		}
	}
	if usage := d.usage(t, "copy"); usage.LogicalBytes > mb/2 {
		t.Errorf("links count as %d bytes: something outside was measured", usage.LogicalBytes)
	}
	d.destroy(t, "copy")

	if err := os.Symlink(src, d.path("link")); err != nil {
		t.Fatal(err)
	}
	if err := d.Clone(t.Context(), d.path("link"), d.path("of-link")); err == nil {
		t.Error("clone follows a link in place of its source")
	}
	d.destroy(t, "of-link")
	if err := d.Destroy(t.Context(), d.path("link")); err != nil {
		t.Error(err)
	}

	deep := src + strings.Repeat("/d", 400)
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Clone(t.Context(), src, d.path("of-deep")); err != nil {
		t.Logf("clone of 400 nested directories: %v", err)
	}
	d.destroy(t, "of-deep")
	d.destroy(t, "source")
	if got := read(t, outside+"/secret"); !bytes.Equal(got, noise(1, mb)) {
		t.Error("something outside was changed")
	}
}

func testPartial(t *testing.T, d *driven) {
	d.destroy(t, "never-was")
	write(t, d.path("plain")+"/base/1", []byte("a directory that the driver did not make"))
	d.destroy(t, "plain")

	src := d.create(t, "source")
	for i := range 50 {
		write(t, fmt.Sprintf("%s/base/%d", src, i), noise(uint64(i), 65536))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Clone(ctx, src, d.path("cancelled")); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled clone: %v", err)
	}
	d.destroy(t, "cancelled")
	if err := d.Clone(t.Context(), d.path("never-was"), d.path("of-nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("clone of nothing: %v, want fs.ErrNotExist", err)
	}
	if err := d.Clone(t.Context(), src, src); err == nil {
		t.Error("a clone onto something that exists succeeds")
	}
	d.destroy(t, "source")
	d.destroy(t, "source")
}

func testThousandFiles(t *testing.T, d *driven) {
	src := d.create(t, "source")
	for i := range 1000 {
		write(t, fmt.Sprintf("%s/base/%d/%d", src, i%3, i), noise(uint64(i), 16384))
	}
	want := describe(t, src)
	measure := func(what string, do func()) {
		start := time.Now()
		do()
		t.Logf("%s of 1000 files: %v", what, time.Since(start).Round(100*time.Microsecond))
	}
	measure("first clone", func() { d.clone(t, "source", "copy") })
	measure("second clone", func() { d.clone(t, "source", "copy2") })
	if diff := cmp.Diff(want, describe(t, d.path("copy2"))); diff != "" {
		t.Errorf("clone differs (-source +clone):\n%s", diff)
	}
	measure("usage", func() {
		if _, err := d.Usage(t.Context(), d.path("copy")); err != nil {
			t.Error(err)
		}
	})
	measure("destroy", func() { d.destroy(t, "copy") })
}
