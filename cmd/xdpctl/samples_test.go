package main

import (
	"errors"
	"io/fs"
	"math"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/firewall"
	"github.com/xdp-cni/xdp-cni/ipam/leases"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// The made-up node of the tests: demo/client with two interfaces, demo/server, and a container
// outside Kubernetes whose ID begins like the server's.
const (
	clientID = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
	serverID = "77aa00000000000000000000000000000000000000000000000000000000cafe"
	podmanID = "77bb00000000000000000000000000000000000000000000000000000000beef"
)

var (
	made = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	now  = made.Add(3*time.Hour + 20*time.Minute)
)

func sampleAttachments() []datapath.Attachment {
	attachment := func(m datapath.Meta) datapath.Attachment {
		m.Created, m.PluginVersion = made, "v0.1.0"
		if m.Network == "" {
			m.Network = "pods"
		}
		m.PodMAC = []byte{2, 0, 0, 0, 0, byte(m.PodIndex)}
		return datapath.Attachment{ID: m.ContainerID + "__" + m.IfName, Meta: &m}
	}
	list := []datapath.Attachment{
		attachment(datapath.Meta{
			ContainerID: serverID, IfName: "eth0", Netns: "/run/netns/server",
			PodNamespace: "demo", PodName: "server", PodUID: "5b1f0d6e-0000-4000-8000-000000000002",
			HostName: "veth22222222", HostIndex: 12, PodIndex: 2, Mode: datapath.ModeGeneric,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.88.0.3/16")},
		}),
		attachment(datapath.Meta{
			ContainerID: podmanID, IfName: "eth0",
			HostName: "veth33333333", HostIndex: 13, PodIndex: 2, Mode: datapath.ModeNative,
		}),
		attachment(datapath.Meta{
			ContainerID: clientID, IfName: "net1", Netns: "/run/netns/client", Network: "storage",
			PodNamespace: "demo", PodName: "client", PodUID: "5b1f0d6e-0000-4000-8000-000000000001",
			HostName: "veth11111112", HostIndex: 11, PodIndex: 3, Mode: datapath.ModeNative,
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")},
		}),
		attachment(datapath.Meta{
			ContainerID: clientID, IfName: "eth0", Netns: "/run/netns/client",
			PodNamespace: "demo", PodName: "client", PodUID: "5b1f0d6e-0000-4000-8000-000000000001",
			HostName: "veth11111111", HostIndex: 10, PodIndex: 2, Mode: datapath.ModeTCX,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.88.0.2/16"), netip.MustParsePrefix("fd00::2/64")},
		}),
	}
	sortAttachments(list)
	return list
}

// samplePrograms are user programs: two before the filter, of which one is shared, and one after it.
func samplePrograms() []datapath.PodProgram {
	return []datapath.PodProgram{
		{
			Name: "block", Function: "xdp_blocklist", Object: "/etc/cni/xdp/blocklist.bpf.o", Digest: [32]byte{1}, ID: 311,
			Maps: []string{"/x/programs/block/blocklist_v4", "/x/programs/block/blocklist_v6"},
			Runs: [bpf.DatapathVerdictVERDICTS]uint64{1, 20, 123_456, 3, 4}, Timed: 1930, Time: 173_600 * time.Nanosecond,
		},
		{
			Name: "xdp_pass", Function: "xdp_pass", Object: "/etc/cni/xdp/verdicts.bpf.o", Digest: [32]byte{2}, ID: 312,
			Optional: true, Shared: true, Runs: [bpf.DatapathVerdictVERDICTS]uint64{bpf.DatapathVerdictVERDICT_PASS: 123_456},
			Timed: 1930, Time: 61_760 * time.Nanosecond,
		},
		{
			Name: "count", Function: "xdp_count", Object: "/etc/cni/xdp/count.bpf.o", Digest: [32]byte{3}, ID: 313, After: true,
			Maps:  []string{"/x/programs/count/_bss", "/x/programs/count/sources"},
			Runs:  [bpf.DatapathVerdictVERDICTS]uint64{bpf.DatapathVerdictVERDICT_PASS: 123_000},
			Timed: 1923, Time: 98_073 * time.Nanosecond,
		},
	}
}

// sampleTCPrograms are those of a pod in mode tcx.
func sampleTCPrograms() []datapath.PodProgram {
	return []datapath.PodProgram{
		{
			Name: "mark", Function: "tc_mark", Object: "/etc/cni/xdp/mark.bpf.o", Digest: [32]byte{4}, ID: 314, TC: true,
			Shared: true,
		},
		{
			Name: "count", Function: "tc_count", Object: "/etc/cni/xdp/count.bpf.o", Digest: [32]byte{3}, ID: 315, TC: true,
			After: true, Maps: []string{"/x/programs/count/_bss", "/x/programs/count/sources"},
		},
	}
}

// sampleNodeMaps are those of both that are the node's.
func sampleNodeMaps() map[string]string {
	return map[string]string{"/x/programs/count/sources": "/x/node/program_maps/sources"}
}

// sampleKernel is what the kernel says of so many programs: of tc programs it counts the runs.
func sampleKernel(list []datapath.PodProgram) (kernel []*datapath.KernelProgram) {
	for _, p := range list {
		one := &datapath.KernelProgram{Type: ebpf.XDP}
		if p.TC {
			one = &datapath.KernelProgram{Type: ebpf.SchedCLS, Runs: 1000, Time: 65 * time.Microsecond}
		}
		kernel = append(kernel, one)
	}
	return kernel
}

// programmedFacts are those of a node where pods have user programs, whose files are as they were.
func programmedFacts() *facts {
	f := goodFacts()
	f.attachments[0].programs, f.attachments[3].programs = samplePrograms()[:1], samplePrograms()
	f.programs = programFacts{}
	for _, p := range samplePrograms() {
		f.programs[p.Object] = objectFacts{digest: p.Digest}
	}
	return f
}

// sampleReadings are counters of the first two attachments.
func sampleReadings() []reading {
	busy := &datapath.Stats{
		Egress: datapath.DirectionStats{
			Verdicts: [bpf.DatapathVerdictVERDICTS]datapath.Counter{
				bpf.DatapathVerdictVERDICT_PASS:     {Packets: 120_456, Bytes: 98_000_000},
				bpf.DatapathVerdictVERDICT_DROP:     {Packets: 7, Bytes: 700},
				bpf.DatapathVerdictVERDICT_REDIRECT: {Packets: 3_000, Bytes: 765_432},
			},
			Protocols: [bpf.DatapathProtocolPROTOCOLS]datapath.Counter{
				bpf.DatapathProtocolPROTOCOL_TCP:    {Packets: 120_000, Bytes: 98_000_000},
				bpf.DatapathProtocolPROTOCOL_UDP:    {Packets: 3_450, Bytes: 765_000},
				bpf.DatapathProtocolPROTOCOL_ICMPV6: {Packets: 10, Bytes: 980},
			},
			Kinds: [bpf.DatapathKindKINDS]datapath.Counter{
				bpf.DatapathKindKIND_IPV4:      {Packets: 123_450, Bytes: 98_765_000},
				bpf.DatapathKindKIND_IPV6:      {Packets: 10, Bytes: 980},
				bpf.DatapathKindKIND_TRUNCATED: {Packets: 2, Bytes: 100},
				bpf.DatapathKindKIND_MALFORMED: {Packets: 1, Bytes: 52},
			},
			Drops: [bpf.DatapathDropReasonDROP_REASONS - 1]datapath.Counter{
				bpf.DatapathDropReasonDROP_SPOOF - 1:     {Packets: 1, Bytes: 98},
				bpf.DatapathDropReasonDROP_RULE - 1:      {Packets: 3, Bytes: 450},
				bpf.DatapathDropReasonDROP_MALFORMED - 1: {Packets: 3, Bytes: 152},
			},
		},
		Ingress: datapath.DirectionStats{
			Verdicts: [bpf.DatapathVerdictVERDICTS]datapath.Counter{
				bpf.DatapathVerdictVERDICT_PASS: {Packets: 1000, Bytes: 1024},
			},
			Protocols: [bpf.DatapathProtocolPROTOCOLS]datapath.Counter{
				bpf.DatapathProtocolPROTOCOL_OTHER: {Packets: 1000, Bytes: 1024},
			},
			Kinds: [bpf.DatapathKindKINDS]datapath.Counter{
				bpf.DatapathKindKIND_OTHER: {Packets: 1000, Bytes: 1024},
			},
		},
	}
	list := sampleAttachments()
	return []reading{{list[1], busy}, {list[0], &datapath.Stats{}}}
}

func samplePeers() []datapath.PeerStats {
	return []datapath.PeerStats{
		{Address: netip.MustParseAddr("10.88.0.3"), Egress: datapath.Counter{Packets: 1, Bytes: 98}, Ingress: datapath.Counter{Packets: 1, Bytes: 98}},
		{Address: netip.MustParseAddr("fd00::3"), Egress: datapath.Counter{Packets: 2000, Bytes: 4 << 20}},
		{Address: netip.MustParseAddr("10.88.0.1"), Ingress: datapath.Counter{Packets: 2, Bytes: 196}},
		// read twice, the second time later
		{Address: netip.MustParseAddr("10.88.0.3"), Egress: datapath.Counter{Packets: 3, Bytes: 294}, Ingress: datapath.Counter{Packets: 3, Bytes: 294}},
	}
}

func sampleNode() *datapath.NodeInfo {
	return &datapath.NodeInfo{
		Release: "v0.1.0", Created: made, Netns: 4026531840, Here: true, XDPFrags: true, Slots: 4096, Taken: 4,
		Programs: []datapath.NodeProgram{
			{Name: "xdp_egress", ID: 41, Type: ebpf.XDP, Tag: "0123456789abcdef", Loaded: made, Release: "v0.1.0"},
			{Name: "tc_ingress", ID: 142, Type: ebpf.SchedCLS, Tag: "fedcba9876543210", Loaded: made, Release: "v0.1.0"},
		},
	}
}

func sampleImport() *importReport {
	known := knownPods{
		names: map[leases.Owner]pod{{ContainerID: serverID, IfName: "eth0"}: {"demo", "server", "5b1f0d6e-0000-4000-8000-000000000002"}},
		inUse: map[netip.Addr]bool{netip.MustParseAddr("10.88.0.3"): true, netip.MustParseAddr("10.88.0.9"): true},
	}
	lease := func(address, containerID, ifname string) leaseReport {
		return known.report("pods", leases.Lease{
			Address: netip.MustParseAddr(address), Owner: leases.Owner{ContainerID: containerID, IfName: ifname}, Time: made,
		})
	}
	return &importReport{
		Imported: []leaseReport{lease("10.88.0.3", serverID, "eth0"), lease("10.88.0.9", "", ""), lease("fd00::3", podmanID, "eth0")},
		Skipped:  []skipReport{{lease("10.88.0.4", podmanID, "net1"), "no interface has the address"}},
	}
}

func sampleNetworks() []networkReport {
	return []networkReport{
		{Network: "empty", Leases: 2, Sets: []setReport{}},
		{Network: "pods", Leases: 3, Sets: []setReport{
			{Used: 2, Usable: 253, Last: "10.88.0.9", Ranges: []rangeReport{{"10.88.0.1", "10.88.0.254", "10.88.0.0/24", "10.88.0.1", 2}}},
			{Used: 1, Usable: math.MaxUint64, Ranges: []rangeReport{{"fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::/64", "fd00::1", 1}}},
		}},
	}
}

// sampleEndpoints are addresses in each state.
func sampleEndpoints() *datapath.Endpoints {
	list := sampleAttachments()
	podman, client, storage, server := &list[0], &list[1], &list[2], &list[3]
	entered := func(address string, of *datapath.Attachment, bridge int, state datapath.EndpointState, unfit ...string) datapath.Endpoint {
		e := datapath.Endpoint{
			Address: netip.MustParseAddr(address), State: state, Unfit: unfit, Attachment: of, HostIndex: 20,
			PodMAC: []byte{2, 0, 0, 0, 0, 9}, RouterMAC: []byte{2, 0, 0, 0, 1, 1}, MTU: 1500, Bridge: bridge, Mode: datapath.ModeTCX,
		}
		if bridge != 0 {
			e.BridgeName = "cni0"
		}
		if of != nil {
			e.HostIndex, e.PodMAC, e.Mode = of.Meta.HostIndex, of.Meta.PodMAC, of.Meta.Mode
			e.TakesFrames = of.Meta.Mode == datapath.ModeNative
		}
		return e
	}
	shared := entered("192.0.2.2", storage, 0, datapath.EndpointInForce)
	shared.AcrossNetworks = true
	return &datapath.Endpoints{
		Entered: 6, MaxEndpoints: 8192, Flows: 2, MaxFlows: 16384,
		List: []datapath.Endpoint{
			entered("10.88.0.2", client, 5, datapath.EndpointInForce),
			entered("10.88.0.3", server, 5, datapath.EndpointInForce),
			entered("10.88.0.9", nil, 0, datapath.EndpointStale),
			entered("10.88.0.10", podman, 0, datapath.EndpointOff, "GRO is off", "it has no XDP program"),
			shared,
			entered("198.51.100.1", podman, 0, datapath.EndpointOff),
			{Address: netip.MustParseAddr("fd00::2"), State: datapath.EndpointMissing, Attachment: client, HostIndex: 10, Mode: datapath.ModeTCX},
		},
	}
}

// sampleFlows are what is known of flows from demo/client to demo/server.
func sampleFlows() []datapath.DirectFlow {
	flow := func(protocol uint8, source, destination string, state datapath.FlowState, counts ...uint32) datapath.DirectFlow {
		f := datapath.DirectFlow{
			Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort(destination), Protocol: protocol, State: state,
			Sent: counts[0], Delivered: counts[1], AnswersSent: counts[2], AnswersDelivered: counts[3],
		}
		if protocol != 6 {
			f.Seen = made
		}
		return f
	}
	return []datapath.DirectFlow{
		flow(6, "10.88.0.2:40000", "10.88.0.3:9100", datapath.FlowKnown, 1, 1, 1, 1),
		flow(6, "10.88.0.2:40001", "10.88.0.3:9100", datapath.FlowOneEnd, 1, 0, 0, 0),
		flow(17, "10.88.0.2:40000", "10.88.0.3:53", datapath.FlowUnanswered, 7, 7, 0, 0),
	}
}

// goodFacts are those of a node where all is well.
func goodFacts() *facts {
	f := &facts{
		release: "v0.1.0", kernel: "6.18.0", features: datapath.Features{TCX: true, XDPFrags: true},
		jitted: true, jitSysctl: "1", root: "/sys/fs/bpf/xdp-cni", rootIsThere: true, mounted: true, node: sampleNode(),
		lru: lruFacts{fills: true},
	}
	f.leases = leaseFacts{networks: 1, leases: 3}
	for _, a := range sampleAttachments() {
		f.attachments = append(f.attachments, attachmentFacts{Attachment: a})
	}
	f.attachments[3].filter = &conf.Filter{}
	return f
}

// redirectingFacts are those of a node with redirect and a firewall.
func redirectingFacts() *facts {
	f := goodFacts()
	f.redirect = redirectFacts{
		endpoints:   sampleEndpoints(),
		forward:     []string{"chain ip filter FORWARD: policy drop, 3 rules"},
		invalid:     []string{"chain ip filter KUBE-FORWARD, rule with handle 12"},
		masquerades: []string{"chain ip nat POSTROUTING, rule with handle 7"},
		legacy:      []firewall.Legacy{{Family: "ip", Table: "filter", Forward: true}, {Family: "ip", Table: "nat", Postrouting: true}},
	}
	return f
}

// badFacts are those of an old kernel and of pins that somebody was at.
func badFacts() *facts {
	f := goodFacts()
	f.release, f.kernel, f.features = "v0.2.0", "5.15.0", datapath.Features{}
	f.jitted, f.jitSysctl = false, "0"
	f.tailCalls = datapath.ErrUnsupported
	changed, gone := samplePrograms()[0], samplePrograms()[1]
	f.attachments[2].programs = []datapath.PodProgram{changed, gone}
	f.attachments[3].programs = []datapath.PodProgram{changed}
	f.programs = programFacts{changed.Object: {digest: [32]byte{9}}, gone.Object: {err: fs.ErrNotExist}}
	f.lru = lruFacts{cpus: 64}
	f.attachments[3].capacities = datapath.Capacities{Flows: 4096, Peers: 1024}
	f.attachments[0].verify = errors.New("pin peers:\nmissing")
	f.attachments[1].stale = true
	f.ready = fs.ErrInvalid
	return f
}
