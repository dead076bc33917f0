// Package ethtool reads and sets what native XDP on veth depends on. Interfaces are those of the calling
// thread's network namespace.
//
// It does not use github.com/safchain/ethtool (0.6.2), which passes the address of a variable on
// the stack as a number: where the stack grows in between, the kernel reads and writes freed
// memory, and the answer is all zeros (seen at 6 of 200 stack depths).
package ethtool

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Channels is struct ethtool_channels (include/uapi/linux/ethtool.h).
type Channels struct {
	cmd                                                          uint32
	MaxRx, MaxTx, MaxOther, MaxCombined, Rx, Tx, Other, Combined uint32
}

// GetChannels returns an interface's queues; EOPNOTSUPP on veth below kernel 5.14.
func GetChannels(name string) (Channels, error) {
	c := Channels{cmd: unix.ETHTOOL_GCHANNELS}
	err := ioctl(name, unsafe.Pointer(&c))
	return c, err
}

// SetChannels sets an interface's queues.
func SetChannels(name string, c Channels) error {
	c.cmd = unix.ETHTOOL_SCHANNELS
	return ioctl(name, unsafe.Pointer(&c))
}

// value is struct ethtool_value.
type value struct{ cmd, data uint32 }

// GRO tells whether generic receive offload is on.
func GRO(name string) (bool, error) { return get(name, unix.ETHTOOL_GGRO) }

// SetGRO turns generic receive offload on or off.
func SetGRO(name string, on bool) error { return set(name, unix.ETHTOOL_SGRO, on) }

// TxChecksum tells whether the interface leaves checksums of sent packets to the driver: any of them,
// SCTP's too (ethtool_get_feature_mask() in net/ethtool/ioctl.c).
func TxChecksum(name string) (bool, error) { return get(name, unix.ETHTOOL_GTXCSUM) }

// SetTxChecksum turns checksum offload of sent packets on or off: all of it. Off, segmentation offload of
// TCP goes too, and comes back with it.
func SetTxChecksum(name string, on bool) error { return set(name, unix.ETHTOOL_STXCSUM, on) }

func get(name string, command uint32) (bool, error) {
	v := value{cmd: command}
	err := ioctl(name, unsafe.Pointer(&v))
	return v.data != 0, err
}

func set(name string, command uint32, on bool) error {
	v := value{cmd: command}
	if on {
		v.data = 1
	}
	return ioctl(name, unsafe.Pointer(&v))
}

// ioctl runs a command, whose struct begins with its number.
func ioctl(name string, command unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("ethtool: %w", err)
	}
	defer unix.Close(fd)
	request := struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: command}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(command)
	if errno != 0 {
		return errno
	}
	return nil
}
