package addrs

import (
	"math/bits"
	"net/netip"
)

// BlockSize is how many addresses a block holds.
const BlockSize = 1 << blockBits

const blockBits = 10

// Block is BlockSize addresses, aligned, one bit for each: a piece of a bitmap of all addresses
// there are, of which only the pieces that are not empty exist anywhere.
type Block [BlockSize / 64]uint64

// BlockOf returns the first address of the block that a is in, IPv4 mapped into IPv6, and a's
// place in the block.
func BlockOf(a netip.Addr) (base [16]byte, bit int) {
	hi, lo := halves(a)
	return address(hi, lo&^(BlockSize-1), false).As16(), int(lo & (BlockSize - 1))
}

// At returns the address of a bit of the block that begins at base.
func At(base [16]byte, bit int) netip.Addr {
	hi, lo := halves(netip.AddrFrom16(base))
	return address(hi, lo|uint64(bit), false).Unmap()
}

// EndOfBlock returns the last address of a's block.
func EndOfBlock(a netip.Addr) netip.Addr {
	base, _ := BlockOf(a)
	return At(base, BlockSize-1)
}

// Set and Clear change a bit.
func (b *Block) Set(bit int) { b[bit/64] |= 1 << (bit % 64) }

// Clear is the reverse of Set.
func (b *Block) Clear(bit int) { b[bit/64] &^= 1 << (bit % 64) }

// Has tells whether a bit is set.
func (b *Block) Has(bit int) bool { return b[bit/64]&(1<<(bit%64)) != 0 }

// Empty tells whether no bit is set.
func (b *Block) Empty() bool { return *b == Block{} }

// NextClear returns the first bit in [from, to] that is not set, -1 if there is none.
func (b *Block) NextClear(from, to int) int {
	for bit := from; bit <= to; {
		free := ^b[bit/64] >> (bit % 64)
		if free == 0 {
			bit = (bit/64 + 1) * 64
			continue
		}
		if bit += bits.TrailingZeros64(free); bit <= to {
			return bit
		}
		break
	}
	return -1
}

// CountIn counts the bits that are set for addresses of the set, in the block that begins at base.
func (b *Block) CountIn(base [16]byte, s Set) uint64 {
	var n uint64
	first, last := At(base, 0), At(base, BlockSize-1)
	for _, r := range s {
		if !(Range{First: first, Last: last}).Overlaps(r) {
			continue
		}
		from, to := 0, BlockSize-1
		if first.Less(r.First) {
			_, from = BlockOf(r.First)
		}
		if r.Last.Less(last) {
			_, to = BlockOf(r.Last)
		}
		for bit := from; bit <= to; bit++ {
			if b.Has(bit) {
				n++
			}
		}
	}
	return n
}
