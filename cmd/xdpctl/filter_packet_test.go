package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1":            "10.0.0.1 0 false",
		"10.0.0.1:443":        "10.0.0.1 443 true",
		"10.0.0.1:0":          "10.0.0.1 0 true",
		":80":                 "invalid IP 80 true",
		"fd00::1":             "fd00::1 0 false",
		"::":                  ":: 0 false",
		"[fd00::1]":           "fd00::1 0 false",
		"[fd00::1]:65535":     "fd00::1 65535 true",
		"::ffff:10.0.0.1":     "10.0.0.1 0 false",
		"[::ffff:10.0.0.1]:1": "10.0.0.1 1 true",
	} {
		e, err := parseEndpoint(in)
		have := fmt.Sprint(e.address, e.port, e.hasPort)
		if err != nil || have != want {
			t.Errorf("%q: %s, %v; want %s", in, have, err, want)
		}
	}
	for _, in := range []string{"", ":", "x", "10.0.0.1:", "10.0.0.1:65536", "10.0.0.1:http", "10.0.0.1/8", "[fd00::1", "[fd00::1]443",
		"[]:1", "fe80::1%eth0", "10.0.0.1:1:2", "[10.0.0.1]:x", ":-1", ":+1"} {
		if e, err := parseEndpoint(in); err == nil {
			t.Errorf("%q: %+v", in, e)
		}
	}
}

func TestParsePacket(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--egress --protocol tcp --to 10.0.0.1:443", "egress tcp from the pod to 10.0.0.1:443"},
		{"--egress --protocol 6 --from 10.88.0.2:9 --to 10.0.0.1:443", "egress tcp from 10.88.0.2:9 to 10.0.0.1:443"},
		{"--ingress --protocol udp --from 10.0.0.1 --to :53", "ingress udp from 10.0.0.1 to port 53 of the pod"},
		{"--ingress --protocol sctp --from [fd00::1]:9 --to [fd00::2]:53", "ingress sctp from [fd00::1]:9 to [fd00::2]:53"},
		{"--egress --icmp 8 --to 10.0.0.1", "egress icmp type 8/0 from the pod to 10.0.0.1"},
		{"--egress --protocol icmp --to 10.0.0.1", "egress icmp type 8/0 from the pod to 10.0.0.1"},
		{"--egress --protocol icmpv6 --to fd00::1", "egress icmpv6 type 128/0 from the pod to fd00::1"},
		{"--ingress --icmp 1/4 --from fd00::1", "ingress icmpv6 type 1/4 from fd00::1 to the pod"},
		{"--egress --protocol 47 --to ::ffff:10.0.0.1", "egress protocol 47 from the pod to 10.0.0.1"},

		{"--protocol tcp --to 10.0.0.1:1", "!one of --egress and --ingress is needed"},
		{"--egress --ingress --protocol tcp --to 10.0.0.1:1", "!one of --egress and --ingress is needed"},
		{"--egress --to 10.0.0.1", "!--protocol is needed"},
		{"--egress --protocol any --to 10.0.0.1", "!a packet has one protocol"},
		{"--egress --protocol gre --to 10.0.0.1", `!protocol "gre": want`},
		{"--egress --protocol tcp", "!--to with the other side's address is needed"},
		{"--egress --protocol tcp --to :80", "!--to with the other side's address is needed"},
		{"--ingress --protocol tcp --to :80", "!--from with the other side's address is needed"},
		{"--egress --protocol tcp --to 10.0.0.1", "!--to needs a port: tcp"},
		{"--ingress --protocol tcp --from 10.0.0.1:80", "!--to needs a port of the pod, such as :80"},
		{"--ingress --protocol tcp --from 10.0.0.1:80 --to 10.0.0.2", "!--to needs a port of the pod, such as :80"},
		{"--egress --protocol 47 --to 10.0.0.1:80", "!protocol 47 has no ports"},
		{"--ingress --protocol icmp --from 10.0.0.1 --to :80", "!icmp has no ports"},
		{"--egress --protocol tcp --to 10.0.0.1:x", `!--to: "10.0.0.1:x" has no port`},
		{"--ingress --protocol tcp --from x --to :1", `!--from: "x" is no address`},
		{"--egress --protocol tcp --from fd00::1 --to 10.0.0.1:1", "!fd00::1 and 10.0.0.1 are not of one family"},
		{"--egress --protocol icmp --to fd00::1", "!it is icmpv6"},
		{"--egress --protocol icmpv6 --to 10.0.0.1", "!it is icmp"},
		{"--egress --protocol tcp --icmp 8 --to 10.0.0.1:1", "!--icmp does not go with tcp"},
		{"--egress --icmp echo --to 10.0.0.1", "!--icmp echo: want a type"},
		{"--egress --icmp 256 --to 10.0.0.1", "!--icmp 256: want a type"},
		{"--egress --icmp 3/ --to 10.0.0.1", "!--icmp 3/: want a type"},
	} {
		flags, cmd := &packetFlags{}, &cobra.Command{}
		flags.flags(cmd)
		if err := cmd.ParseFlags(strings.Fields(test.args)); err != nil {
			t.Fatal(err)
		}
		p, err := flags.parse()
		want, fails := strings.CutPrefix(test.want, "!")
		switch {
		case fails && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", test.args, err, want)
		case !fails && err != nil:
			t.Errorf("%s: %v", test.args, err)
		case !fails:
			if have := newPacketReport(p, !p.local.address.IsValid()).String(); have != want {
				t.Errorf("%s: %q, want %q", test.args, have, want)
			}
		}
	}
}
