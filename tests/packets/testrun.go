package packets

import "encoding/binary"

// XDPContext is what a test run tells an XDP program of its frame: struct xdp_md (include/uapi/linux/bpf.h).
type XDPContext struct {
	Data, DataEnd, DataMeta, IngressIfindex, RXQueueIndex, EgressIfindex uint32
}

// CameIn is the context of a frame that came in by an interface.
func CameIn(frame []byte, ifindex int) XDPContext {
	return XDPContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex)}
}

// NetworkOrder returns v as it lies in memory in network byte order: for fields of C that have it so.
func NetworkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
