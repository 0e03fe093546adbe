package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/pgbough/pgbough"
)

// segment names a file of WAL as Postgres does (xlog_internal.h, XLogFileName):
// its timeline, and two halves of its number that depend on the segments' size.
type segment struct{ timeline, high, low uint32 }

func (s segment) name() string { return fmt.Sprintf("%08X%08X%08X", s.timeline, s.high, s.low) }

// no counts segments of size bytes from the beginning of all WAL.
func (s segment) no(size uint64) uint64 { return uint64(s.high)*(1<<32/size) + uint64(s.low) }

func (s segment) end(size uint64) pgbough.LSN { return pgbough.LSN((s.no(size) + 1) * size) }

func segmentOf(timeline uint32, no, size uint64) segment {
	per := uint64(1<<32) / size
	return segment{timeline, uint32(no / per), uint32(no % per)}
}

func parseSegment(name string) (segment, bool) {
	if len(name) != 24 || strings.ToUpper(name) != name {
		return segment{}, false
	}
	var parts [3]uint32
	for i := range parts {
		v, err := strconv.ParseUint(name[8*i:8*i+8], 16, 32)
		if err != nil {
			return segment{}, false
		}
		parts[i] = uint32(v)
	}
	return segment{parts[0], parts[1], parts[2]}, parts[0] != 0
}

func historyName(timeline uint32) string { return fmt.Sprintf("%08X.history", timeline) }

func parseHistoryName(name string) (uint32, bool) {
	number, ok := strings.CutSuffix(name, ".history")
	v, err := strconv.ParseUint(number, 16, 32)
	return uint32(v), ok && err == nil && len(number) == 8
}

// A file of the archive is a head and a zstd frame. The head has a fixed size:
// what it is and in which format, how long it was, and the SHA-256 of that.
const (
	tail     = ".zst"
	magic    = "pgbwal\x00\x01" // the last byte is the format
	headSize = len(magic) + 8 + sha256.Size
)

type codec struct {
	encoder *zstd.Encoder
	decoder *zstd.Decoder
}

func newCodec() (codec, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return codec{}, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxSegment))
	return codec{e, d}, err
}

// maxSegment is the largest segment that Postgres can have (1 GB).
const maxSegment = 1 << 30

func (c codec) encode(raw []byte) []byte {
	head := append(make([]byte, 0, headSize+len(raw)/2), magic...)
	head = binary.BigEndian.AppendUint64(head, uint64(len(raw)))
	sum := sha256.Sum256(raw)
	return c.encoder.EncodeAll(raw, append(head, sum[:]...))
}

func (c codec) decode(b []byte) ([]byte, error) {
	size, err := readHead(b)
	if err != nil {
		return nil, err
	}
	raw, err := c.decoder.DecodeAll(b[headSize:], make([]byte, 0, size))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); uint64(len(raw)) != size || !bytes.Equal(sum[:], b[len(magic)+8:headSize]) {
		return nil, errors.New("its checksum is wrong")
	}
	return raw, nil
}

func readHead(b []byte) (size uint64, err error) {
	if len(b) < headSize || string(b[:len(magic)]) != magic {
		return 0, errors.New("it does not begin as it should")
	}
	size = binary.BigEndian.Uint64(b[len(magic):])
	if size > maxSegment {
		return 0, fmt.Errorf("it says that it was %d bytes", size)
	}
	return size, nil
}

// rawSize is how long a file of the archive was.
func rawSize(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // read only
	head := make([]byte, headSize)
	if _, err := io.ReadFull(f, head); err != nil {
		return 0, err
	}
	return readHead(head)
}

// readWhole reads a file of a directory that a Postgres writes to.
func readWhole(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSegment {
		return nil, fmt.Errorf("%s is no file of WAL", name)
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(f, b)
	return b, err
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
