package pins

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// maxName is the longest name of a file in bpffs, in bytes (NAME_MAX in include/uapi/linux/limits.h).
const maxName = 255

const (
	idSeparator = "__"
	idHashed    = "__sha256_"
)

// ID returns the name of an attachment's directory. Two attachments never have the same: every
// byte but ASCII letters, digits and '-' is written as '_' and two hex digits (bpffs refuses '.'
// in names, which CNI allows in both), and "__", which no escape can make, stands between
// container ID and interface name. A name that would be too long is the SHA-256 of what it would
// have been.
func ID(containerID, ifname string) string {
	return fit(escape(containerID) + idSeparator + escape(ifname))
}

// NetworkID returns the name of a network's directory, written as [ID] writes the parts of one.
// Two networks never have the same.
func NetworkID(network string) string { return fit(escape(network)) }

// fit returns id if it may be a file's name, else its hash: idHashed is in nothing that escape
// returns.
func fit(id string) string {
	if len(id) <= maxName {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return idHashed + hex.EncodeToString(sum[:])
}

func escape(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			b.WriteByte(c)
		default:
			b.Write([]byte{'_', digits[c>>4], digits[c&15]})
		}
	}
	return b.String()
}
