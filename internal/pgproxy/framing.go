package pgproxy

import "encoding/binary"

// framing finds where messages end in the bytes that a server sends, from their
// heads alone.
type framing struct {
	need int     // bytes of the present message that are to come
	head [5]byte // of the next one, as far as it has come
	have int
	kind byte // of the last message that began
	lost bool // what came are no messages
}

const headSize = 5

// whole tells whether no message has begun that has not ended.
func (f *framing) whole() bool { return f.need == 0 && f.have == 0 && !f.lost }

// advance takes the next bytes, and returns where in them the last message ends;
// -1 if none does.
func (f *framing) advance(b []byte) int {
	end := -1
	for i := 0; i < len(b) && !f.lost; {
		if f.need > 0 {
			n := min(f.need, len(b)-i)
			f.need -= n
			i += n
		} else {
			n := copy(f.head[f.have:], b[i:])
			f.have += n
			i += n
			if f.have < headSize {
				break
			}
			f.begin()
		}
		if f.whole() {
			end = i
		}
	}
	return end
}

func (f *framing) begin() {
	n := binary.BigEndian.Uint32(f.head[1:])
	f.kind, f.have = f.head[0], 0
	f.need = int(n) - 4
	f.lost = f.need < 0 || n > 1<<31-1
}
