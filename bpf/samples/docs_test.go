package samples

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/tests/packets"
)

// TestDocumentedUpdates reads the bpftool lines of docs/samples.md as a shell does, and compares their bytes with what
// they are said to mean, and the length with that of the map, for which bpftool asks.
func TestDocumentedUpdates(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the document has the bytes of little-endian machines")
	}
	document, err := os.ReadFile("../../docs/samples.md")
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(string(document), "```sh\n")
	lines, _, _ = strings.Cut(lines, "```")
	script := exec.Command("bash", "-euc", `bpftool() { echo "$@"; }; POD=pod`+"\n"+lines)
	out, err := script.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	maps, objects := map[string]*ebpf.MapSpec{}, map[string]*ebpf.CollectionSpec{}
	for _, load := range samples {
		s, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for name, m := range s.Maps {
			maps[name], objects[name] = m, s
		}
	}
	want := map[string][2]any{
		"port_rewrites": {
			PortsPort{Port: packets.NetworkOrder(80), Protocol: unix.IPPROTO_TCP},
			PortsPortRewrite{Port: packets.NetworkOrder(8080)},
		},
		"vlan_push": {
			uint32(0), VlanTag{Tpid: packets.NetworkOrder(packets.EtherTypeVLAN), Tci: packets.NetworkOrder(100)},
		},
		"mac_ports":    {uint32(1), uint32(7)},
		"mac_table":    {SwitchMac{Bytes: packets.DestinationMAC}, SwitchMacPort{Port: 1, MaxLength: 1514}},
		"router_ports": {uint32(7), uint32(7)},
		"cpu_queues":   {uint32(2), uint32(192)},
		"cpu_list":     {uint32(0), CpusCpuList{Count: 1, Cpus: [64]uint32{2}}},
	}
	for line := range strings.Lines(string(out)) {
		head, value, _ := strings.Cut(line, " value hex ")
		head, key, _ := strings.Cut(head, " key hex ")
		name := path.Base(head)
		m, entry := maps[name], want[name]
		if m == nil || entry[0] == nil || !strings.HasPrefix(head, "map update pinned ") {
			t.Fatalf("%s: not of a map that is to be filled, or twice", line)
		}
		delete(want, name)
		// pod/PROGRAM/MAP: the program is one of the object that has the map
		program, ok := strings.CutPrefix(path.Dir(strings.TrimPrefix(head, "map update pinned ")), "pod/")
		if !ok || objects[name].Programs[program] == nil {
			t.Errorf("%s is said to be of program %q", name, program)
		}
		for i, text := range []string{key, value} {
			memory, err := binary.Append(nil, binary.NativeEndian, entry[i])
			if err != nil {
				t.Fatal(err)
			}
			got, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
			if err != nil || !bytes.Equal(got, memory) {
				t.Errorf("%s: %x, %v; want %x", name, got, err, memory)
			}
			if size := []uint32{m.KeySize, m.ValueSize}[i]; uint32(len(memory)) != size {
				t.Errorf("%s: %d bytes, want %d", name, len(memory), size)
			}
		}
	}
	for name := range want {
		t.Errorf("the document does not fill %s", name)
	}
}
