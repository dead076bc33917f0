package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Legacy is a table of iptables-legacy, which the kernel does not show by netlink.
type Legacy struct {
	Family, Table string // "ip" or "ip6"; "filter", "nat" and so on
	// Forward and Postrouting: there are rules at those hooks.
	Forward, Postrouting bool
}

// legacyFamilies are where the kernel lists the tables, and by which socket it tells of them.
var legacyFamilies = []struct {
	family, names string
	domain, level int
}{
	{"ip", "/proc/net/ip_tables_names", unix.AF_INET, unix.SOL_IP},
	{"ip6", "/proc/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6},
}

// readLegacy reads which tables there are, and at which hooks they have rules.
func readLegacy() ([]Legacy, error) {
	var tables []Legacy
	for _, f := range legacyFamilies {
		names, err := os.ReadFile(threadPath(f.names))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel has none
		}
		if err != nil {
			return nil, fmt.Errorf("reading the tables of iptables-legacy: %w", err)
		}
		for _, name := range strings.Fields(string(names)) {
			info, err := legacyInfo(f.domain, f.level, name)
			if err != nil {
				return nil, fmt.Errorf("reading table %s %s of iptables-legacy: %w", f.family, name, err)
			}
			at := func(hook int) bool {
				return info.validHooks&(1<<hook) != 0 && info.hookEntry[hook] != info.underflow[hook]
			}
			tables = append(tables, Legacy{
				Family: f.family, Table: name,
				Forward: at(unix.NF_INET_FORWARD), Postrouting: at(unix.NF_INET_POST_ROUTING),
			})
		}
	}
	return tables, nil
}

// threadPath is a file of /proc/net or /proc/sys/net as the calling thread's network namespace has it.
func threadPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/proc/net/"); ok {
		return "/proc/thread-self/net/" + rest
	}
	return path
}

// xtGetInfo is struct ipt_getinfo and struct ip6t_getinfo (include/uapi/linux/netfilter_ipv4/ip_tables.h). What a
// hook's entry is not its underflow, the policy, for, is rules.
type xtGetInfo struct {
	name                 [32]byte
	validHooks           uint32
	hookEntry, underflow [unix.NF_INET_NUMHOOKS]uint32
	entries, size        uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

func legacyInfo(domain, level int, table string) (*xtGetInfo, error) {
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	info := &xtGetInfo{}
	copy(info.name[:len(info.name)-1], table)
	size := uint32(unsafe.Sizeof(*info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, errno
	}
	return info, nil
}

// readBridgeCalls returns the families whose rules see packets that are bridged (br_netfilter).
func readBridgeCalls() map[nftables.TableFamily]bool {
	calls := map[nftables.TableFamily]bool{}
	for family, file := range map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "bridge-nf-call-iptables", nftables.TableFamilyIPv6: "bridge-nf-call-ip6tables",
	} {
		// where there is none, or it cannot be read, there is no br_netfilter
		value, err := os.ReadFile("/proc/sys/net/bridge/" + file)
		calls[family] = err == nil && !bytes.Equal(bytes.TrimSpace(value), []byte("0"))
	}
	return calls
}

// Liberal tells whether connection tracking takes TCP segments outside of the window for part of their connection
// (net.netfilter.nf_conntrack_tcp_be_liberal), and whether there is connection tracking at all.
func Liberal() (liberal, tracking bool) {
	value, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
	return err == nil && !bytes.Equal(bytes.TrimSpace(value), []byte("0")), err == nil
}
