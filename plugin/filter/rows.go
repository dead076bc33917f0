package filter

import (
	"hash/maphash"
	"math/bits"
	"slices"
)

// ruleSet is a set of rules of a direction: rule i is bit i%64 of word i/64.
type ruleSet []uint64

func (s ruleSet) set(i int)   { s[i/64] |= 1 << (i % 64) }
func (s ruleSet) clear(i int) { s[i/64] &^= 1 << (i % 64) }

// only returns the rule of a set that has one.
func (s ruleSet) only() (rule int, ok bool) {
	for i, w := range s {
		switch {
		case w == 0:
		case ok || w&(w-1) != 0:
			return 0, false
		default:
			rule, ok = i*64+bits.TrailingZeros64(w), true
		}
	}
	return rule, ok
}

// rows collects rows, equal ones once.
type rows struct {
	width int      // words of a row, less its summary
	words []uint64 // the rows one behind the other, each with its summary in front
	byKey map[uint64][]uint32
	seed  maphash.Seed
	bytes []byte // of the row looked for
}

func newRows(width int) *rows {
	return &rows{width: width, byKey: make(map[uint64][]uint32), seed: maphash.MakeSeed()}
}

// add returns the number of the row that is equal to set, or, without a row, the one rule that is in it.
func (r *rows) add(set ruleSet) uint32 {
	if i, ok := set.only(); ok {
		return OneRule | uint32(i)
	}
	r.bytes = r.bytes[:0]
	for _, w := range set {
		r.bytes = append(r.bytes, byte(w), byte(w>>8), byte(w>>16), byte(w>>24),
			byte(w>>32), byte(w>>40), byte(w>>48), byte(w>>56))
	}
	key := maphash.Bytes(r.seed, r.bytes)
	size := r.width + 1
	for _, n := range r.byKey[key] {
		if slices.Equal(r.words[int(n)*size+1:int(n+1)*size], set) {
			return n
		}
	}
	n := uint32(len(r.words) / size)
	var summary uint64
	for i, w := range set {
		if w != 0 {
			summary |= 1 << i
		}
	}
	r.words = append(append(r.words, summary), set...)
	r.byKey[key] = append(r.byKey[key], n)
	return n
}
