package bpf_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// maxFuzzed is the longest frame that a tc program can be run with, and a little less.
const maxFuzzed = 3500

// corpus are the frames of all tables.
func corpus() [][]byte {
	var frames [][]byte
	for _, group := range [][]packetCase{
		ethernetCases(), ipv4Cases(), ipv4FragmentCases(), ipv6Cases(), ipv6LengthCases(), ipv6ChainCases(),
		ipv6FragmentCases(), tcpCases(), udpCases(), icmpCases(), representative(),
	} {
		for _, test := range group {
			frames = append(frames, test.frame)
		}
	}
	return frames
}

// TestMutations changes frames at random and compares what the programs count with what the
// reference says.
func TestMutations(t *testing.T) {
	rounds := 20_000
	hooks, frames := newHooks(t), corpus()
	if hooks[0].pod.counters(t); noBatches.Load() {
		rounds /= 10 // to read the counters takes 30 system calls instead of 6
	}
	random := rand.New(rand.NewPCG(1, 2))
	seen := map[class]int{}
	for range rounds {
		in := input{frame: mutate(random, frames)}
		if random.IntN(4) == 0 {
			in.gsoSize, in.gsoSegs = 1+random.Uint32N(2000), 1+random.Uint32N(100)
		}
		seen[checkAll(t, hooks, in)]++
		if t.Failed() {
			return
		}
	}
	for _, c := range []class{
		tcp4, udp4, icmp4, other4, tcp6, udp6, icmp6, other6, notIP, truncated, malformed,
	} {
		t.Logf("%v: %d frames", c, seen[c])
		if seen[c] < rounds/1000 {
			t.Errorf("only %d of %d frames were %v: the mutations are of little use", seen[c], rounds, c)
		}
	}
}

// FuzzParser does the same with what the fuzzer finds.
func FuzzParser(f *testing.F) {
	hooks := newHooks(f)
	for _, frame := range corpus() {
		f.Add(frame, uint16(0))
		f.Add(frame, uint16(1448))
	}
	f.Fuzz(func(t *testing.T, frame []byte, gsoSize uint16) {
		if len(frame) < 14 || len(frame) > maxFuzzed {
			return
		}
		checkAll(t, hooks, input{frame: frame, gsoSize: uint32(gsoSize), gsoSegs: 2})
	})
}

// checkAll sends in through every program and returns its class, as tc is to see it.
func checkAll(t testing.TB, hooks []hook, in input) class {
	t.Helper()
	for _, h := range hooks {
		if h.xdp { // which is not told of GSO
			plain := input{frame: in.frame}
			h.check(t, plain, classify(plain), 1)
			continue
		}
		packets := uint64(1)
		if in.gsoSize != 0 {
			packets = uint64(in.gsoSegs)
		}
		h.check(t, in, classify(in), packets)
	}
	return classify(in)
}

// mutate returns one of the frames with one to four changes, mostly of the headers.
func mutate(random *rand.Rand, frames [][]byte) []byte {
	frame := slices.Clone(frames[random.IntN(len(frames))])
	for range 1 + random.IntN(4) {
		// where a change tells: the headers are in front, as a rule
		at := 12 + random.IntN(min(len(frame)-12, 100))
		switch random.IntN(8) {
		case 0: // another bit
			frame[at] ^= 1 << random.IntN(8)
		case 1: // another byte
			frame[at] = byte(random.Uint32())
		case 2: // a small number, as lengths of headers are
			frame[at] = byte(random.IntN(16))
		case 3: // another protocol
			frame[at] = []byte{0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132}[random.IntN(12)]
		case 4: // a length at the edge
			at = min(at&^1, len(frame)-2)
			length := []int{0, 1, 7, 8, 19, 20, 40, len(frame) - at, len(frame) - 14, len(frame) - 54, 0xffff}[random.IntN(11)]
			binary.BigEndian.PutUint16(frame[at:], uint16(length+random.IntN(3)-1))
		case 5: // cut
			frame = frame[:14+random.IntN(len(frame)-13)]
		case 6: // padded
			frame = packets.Pad(frame, len(frame)+random.IntN(50))
		case 7: // a tag, or an extension header, or what is taken for one
			inserted := make([]byte, []int{4, 8, 12, 16}[random.IntN(4)])
			copy(inserted, frame[at:])
			frame = slices.Insert(frame, min(at, len(frame)), inserted...)
		}
	}
	return frame[:min(len(frame), maxFuzzed)]
}
