package tests

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DialTCP connects from a place to a server and waits for that no longer than timeout. Local is the address to connect
// from, which may be that of a connection that has just ended; the zero AddrPort leaves it to the kernel.
func DialTCP(ctx context.Context, from Place, local, server netip.AddrPort, timeout time.Duration) (conn *net.TCPConn, err error) {
	dialer := net.Dialer{Timeout: timeout, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlErr := raw.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		})
		return errors.Join(controlErr, err)
	}}
	err = from.Do(func() (err error) { // DialTCP makes the socket on this thread; Dial may not
		conn, err = dialer.DialTCP(ctx, "tcp", local, server)
		return err
	})
	return conn, err
}

// TCPOpenings returns how many segments with SYN a place has sent to open connections since it is there, resent ones
// among them: what filters have dropped is counted too. It counts resent answers to such segments as well.
func TCPOpenings(place Place) (segments uint64, err error) {
	err = place.Do(func() error {
		// include/uapi/linux/snmp.h, Documentation/networking/snmp_counter.rst
		opened, err := kernelCounter("snmp", "Tcp:", "ActiveOpens")
		if err != nil {
			return err
		}
		resent, err := kernelCounter("netstat", "TcpExt:", "TCPSynRetrans")
		segments = opened + resent
		return err
	})
	return segments, err
}

// kernelCounter reads a counter of the calling thread's namespace from a file of two lines for each group: names and
// values.
func kernelCounter(file, group, name string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join("/proc/thread-self/net", file))
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group {
			continue
		}
		if i := slices.Index(names, name); i >= 0 && i < len(fields) {
			return strconv.ParseUint(fields[i], 10, 64)
		}
		names = fields
	}
	return 0, fmt.Errorf("no counter %s %s in %s", group, name, file)
}
