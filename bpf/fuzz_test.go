package bpf_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/xdp-cni/xdp-cni/bpf"
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

// TestRedirectMutations changes packets of known flows at random: what goes directly all the same is
// what could, and comes out as a router makes it.
func TestRedirectMutations(t *testing.T) {
	const rounds = 20_000
	random := rand.New(rand.NewPCG(3, 4))
	for _, n := range newNodes(t) {
		for family := range 2 {
			n.reset(t)
			n.routed(t)
			talks := []talk{n.newTalk(packets.ProtocolTCP, family), n.newTalk(packets.ProtocolUDP, family), n.newTalk(packets.ProtocolICMP, family)}
			var frames [][]byte
			known := map[bpf.DatapathDirectKey]bpf.DatapathDirectFlow{}
			for _, c := range talks {
				c.learn(t)
				frames = append(frames, c.ask().frame())
				key, _ := c.key()
				var flow bpf.DatapathDirectFlow
				if err := n.DirectFlows.Lookup(&key, &flow); err != nil {
					t.Fatal(err)
				}
				known[key] = flow
			}
			direct := 0
			for range rounds / 6 {
				frame := mutate(random, frames)
				verdict, out, err := n.hands(t, n.pods[0], input{frame: frame})
				if err != nil {
					continue // refused by the kernel, before the program
				}
				want := frame
				if verdict == n.hook.redirected() {
					direct++
					if want = redirectable(n.pods[1], talks, frame); want == nil {
						t.Fatalf("%s: went directly: %x", n.hook.name, frame)
					}
				} else if verdict != n.hook.pass() {
					t.Fatalf("%s: verdict %d of %x", n.hook.name, int32(verdict), frame)
				}
				if !slices.Equal(out, want) {
					t.Fatalf("%s: of  %x\ncame %x\nwant %x", n.hook.name, frame, out, want)
				}
				for key, flow := range known { // as if it had not been
					put(t, n.DirectFlows, key, flow)
				}
			}
			if direct < rounds/6/20 {
				t.Errorf("%s: only %d of %d frames went directly", n.hook.name, direct, rounds/6)
			}
		}
	}
}

// redirectable returns what must come out if a frame goes directly to a pod, nil if it may not.
func redirectable(to *nodePod, talks []talk, frame []byte) []byte {
	of := classify(input{frame: frame})
	if of.broken() || len(frame) > 14+nodeMTU {
		return nil
	}
	for _, c := range talks {
		known := c.ask().frame()
		want := slices.Clone(frame)
		copy(want, to.endpoint.Mac[:])
		copy(want[6:], to.endpoint.RouterMac[:])
		same := func(from, to int) bool { return len(frame) >= to && slices.Equal(frame[from:to], known[from:to]) }
		ports := 14 + 20
		if c.family == 0 {
			// without options, no fragment, of that protocol and addresses
			if !same(12, 15) || frame[20]&0x3f != 0 || frame[21] != 0 || frame[22] <= 1 || !same(23, 24) || !same(26, 34) {
				continue
			}
			sum := uint32(binary.BigEndian.Uint16(frame[24:])) + 0x100
			binary.BigEndian.PutUint16(want[24:], uint16(sum+sum>>16))
			if sum == 0xffff {
				binary.BigEndian.PutUint16(want[24:], 0)
			}
			want[22]--
		} else {
			ports = 14 + 40
			if !same(12, 14) || frame[14]>>4 != 6 || !same(20, 21) || frame[21] <= 1 || !same(22, 54) {
				continue
			}
			want[21]--
		}
		if !same(0, 6) {
			continue
		}
		switch c.protocol {
		case packets.ProtocolTCP:
			if same(ports, ports+4) && frame[ports+13]&tcpSyn == 0 {
				return want
			}
		case packets.ProtocolUDP:
			if same(ports, ports+4) {
				return want
			}
		default:
			if same(ports, ports+1) && same(ports+4, ports+6) {
				return want
			}
		}
	}
	return nil
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
