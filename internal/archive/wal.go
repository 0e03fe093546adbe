package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/pgbough/pgbough"
)

// What of the format of WAL is the same in Postgres 14 to 18 (xlog_internal.h,
// xlogrecord.h, rmgrlist.h, xact.h). Numbers are in the byte order of the
// machine, which is little-endian wherever pgbough runs.
const (
	pageSize      = 8192
	shortHeader   = 24
	longHeader    = 40 // of the first page of a segment
	recordHeader  = 24
	recordKept    = 96 // how much of a record is looked at: enough for a commit's head
	isContinued   = 1  // XLP_FIRST_IS_CONTRECORD
	isOverwritten = 8  // XLP_FIRST_IS_OVERWRITE_CONTRECORD

	managerXLOG, managerXact = 0, 1
	infoSwitch               = 0x40 // XLOG_SWITCH
	maskXact                 = 0x70 // XLOG_XACT_OPMASK
	xactCommit               = 0x00
	xactCommitPrepared       = 0x30

	blockOrigin, blockTopXID  = 253, 252
	blockDataShort, blockLong = 255, 254
	microsecondsTo2000        = 946684800 * 1000000
	sizeOffset                = 32 // in the first page of a segment, of its size
)

// errEnd says that there is no whole record any more.
var errEnd = errors.New("the WAL ends here")

// record is a record of WAL, as far as it matters here.
type record struct {
	start, end pgbough.LSN // end is where Postgres says that it ends (EndRecPtr)
	commit     time.Time   // when it is that of a commit
}

// reader walks over records.
type reader struct {
	size    uint64 // of a segment
	segment func(no uint64) ([]byte, error)

	at   pgbough.LSN
	no   uint64
	data []byte // of segment no
}

// page is what there is of the page that begins at lsn. It checks that this is
// that page, and not one that was there before the file was used anew.
func (r *reader) page(lsn pgbough.LSN) ([]byte, error) {
	no := uint64(lsn) / r.size
	if r.data == nil || no != r.no {
		data, err := r.segment(no)
		if err != nil {
			return nil, err
		}
		r.no, r.data = no, data
	}
	offset := uint64(lsn) % r.size
	if uint64(len(r.data)) < offset+shortHeader {
		return nil, errEnd
	}
	page := r.data[offset:min(offset+pageSize, uint64(len(r.data)))]
	if binary.LittleEndian.Uint64(page[8:]) != uint64(lsn) {
		return nil, errEnd
	}
	return page, nil
}

func (r *reader) header(lsn pgbough.LSN) int {
	if uint64(lsn)%r.size == 0 {
		return longHeader
	}
	return shortHeader
}

// seek goes to the first record of the last page at or before lsn in which one
// begins at or before lsn. Pages without any are passed over: those of a segment
// that was left early, and those that nothing is written to yet.
func (r *reader) seek(lsn pgbough.LSN) error {
	for p := lsn &^ (pageSize - 1); ; p -= pageSize {
		page, err := r.page(p)
		if errors.Is(err, errEnd) && p >= pageSize && lsn-p < pgbough.LSN(2*r.size) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read WAL at %s: %w", p, err)
		}
		rest := 0
		if binary.LittleEndian.Uint16(page[2:])&isContinued != 0 {
			rest = align(int(binary.LittleEndian.Uint32(page[16:])))
		}
		if first := r.header(p) + rest; first <= pageSize-8 && p+pgbough.LSN(first) <= lsn {
			r.at = p + pgbough.LSN(first)
			return nil
		}
		if p < pageSize {
			return fmt.Errorf("read WAL at %s: %w", lsn, errEnd)
		}
	}
}

func align(n int) int { return (n + 7) &^ 7 }

// next is the record at the reader's place, which it leaves behind.
func (r *reader) next() (record, error) {
	for {
		if r.at%pageSize == 0 {
			r.at += pgbough.LSN(r.header(r.at))
		}
		rec, again, err := r.one()
		if err != nil || !again {
			return rec, err
		}
	}
}

// one reads a record. again: the rest of it was never written, and others follow.
func (r *reader) one() (rec record, again bool, err error) {
	rec.start = r.at
	var kept [recordKept]byte
	have, total := 0, 0
	for at := r.at; ; {
		start := at &^ (pageSize - 1)
		page, err := r.page(start)
		if err != nil {
			return rec, false, err
		}
		in := int(at - start)
		if in == 0 { // it goes on here
			flags := binary.LittleEndian.Uint16(page[2:])
			if flags&isContinued == 0 {
				r.at = start + pgbough.LSN(r.header(start))
				return rec, flags&isOverwritten != 0, endUnless(flags&isOverwritten != 0)
			}
			in = r.header(start)
		}
		if len(page) < in+4 {
			return rec, false, errEnd
		}
		if total == 0 {
			if total = int(binary.LittleEndian.Uint32(page[in:])); total < recordHeader {
				return rec, false, errEnd // zeros, or what was there before
			}
		}
		part := min(total-have, len(page)-in)
		if have < recordKept {
			copy(kept[have:], page[in:in+part])
		}
		have += part
		if have == total {
			rec.end = start + pgbough.LSN(align(in+part))
			break
		}
		if len(page) < pageSize {
			return rec, false, errEnd
		}
		at = start + pageSize
	}
	if kept[17] == managerXLOG && kept[16]&0xF0 == infoSwitch { // the rest of the segment is empty
		rec.end = pgbough.LSN((uint64(rec.end) + r.size - 1) / r.size * r.size)
	}
	rec.commit = commitTime(kept[:min(total, recordKept)])
	r.at = rec.end
	return rec, false, nil
}

func endUnless(ok bool) error {
	if ok {
		return nil
	}
	return errEnd
}

// commitTime is the stamp in the record of a commit; zero for other records. It
// has no blocks, so what may stand before its data is known.
func commitTime(b []byte) time.Time {
	if op := b[16] & maskXact; b[17] != managerXact || op != xactCommit && op != xactCommitPrepared {
		return time.Time{}
	}
	for i := recordHeader; i < len(b); {
		switch b[i] {
		case blockOrigin:
			i += 3
		case blockTopXID:
			i += 5
		case blockDataShort:
			return stamp(b, i+2)
		case blockLong:
			return stamp(b, i+5)
		default:
			return time.Time{}
		}
	}
	return time.Time{}
}

func stamp(b []byte, i int) time.Time {
	if len(b) < i+8 {
		return time.Time{}
	}
	return time.UnixMicro(int64(binary.LittleEndian.Uint64(b[i:])) + microsecondsTo2000).UTC()
}
