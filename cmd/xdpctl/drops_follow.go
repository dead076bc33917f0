package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-cni/xdp-cni/bpf"
	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/internal/pins"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// dropReport is what drops --follow says of a packet.
type dropReport struct {
	Time            string        `json:"time"` // to the microsecond
	ContainerID     string        `json:"containerID"`
	IfName          string        `json:"ifname"`
	Pod             pod           `json:"pod"`
	HostInterface   hostInterface `json:"hostInterface"`
	Direction       string        `json:"direction"`
	Verdict         string        `json:"verdict"` // deny or audit
	Reason          string        `json:"reason"`
	Rule            int           `json:"rule"`     // -1 for none
	RuleName        string        `json:"ruleName"` // "" if it is not known
	Generation      uint32        `json:"generation"`
	Length          uint32        `json:"length"`
	EtherType       uint16        `json:"etherType"`
	Protocol        string        `json:"protocol"` // "" if it is not IP, as the addresses
	Source          string        `json:"source"`
	SourcePort      uint16        `json:"sourcePort"`
	Destination     string        `json:"destination"`
	DestinationPort uint16        `json:"destinationPort"`
	ICMPType        uint8         `json:"icmpType"`
	ICMPCode        uint8         `json:"icmpCode"`

	label string
	time  time.Time
}

// microseconds is RFC 3339 to the microsecond.
const microseconds = "2006-01-02T15:04:05.000000Z07:00"

// follow is drops --follow.
type follow struct {
	o     *options
	count int
	told  int
}

// errEnough ends following without an error.
var errEnough = errors.New("enough")

// run shows drops of the pods named, or of all, until ctx ends, nobody reads them any more, or there
// were enough.
func (f *follow) run(ctx context.Context, names []string) error {
	node := f.o.filters()
	all, err := node.List()
	for _, name := range names {
		if _, pickErr := pick(all, name); pickErr != nil {
			return errors.Join(pickErr, err)
		}
	}
	ctx, cancel := whileRead(ctx, f.o.out)
	defer cancel()
	known := newKnown(node, names)
	tell := func(event datapath.DropEvent) error {
		report, ok := known.report(event)
		if !ok {
			return nil
		}
		if err := f.o.writeLine(report); err != nil {
			return err
		}
		if f.told++; f.told == f.count {
			return errEnough
		}
		return nil
	}
	err = node.FollowDrops(ctx, tell)
	if errors.Is(err, fs.ErrNotExist) && len(all) > 0 {
		fmt.Fprintln(f.o.err, "The last attachment has gone; waiting for others.")
		for errors.Is(err, fs.ErrNotExist) && sleep(ctx, lookAgain) {
			err = node.FollowDrops(ctx, tell)
		}
	}
	switch {
	case ctx.Err() != nil, errors.Is(err, errEnough), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrClosedPipe):
		return nil
	case errors.Is(err, pins.ErrBusy):
		return fmt.Errorf("another process follows the drops of this node, and only one at a time can: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there are no attachments under %s, and so nothing to follow: %w", f.o.bpffs, err)
	}
	return err
}

// sleep waits, and returns false if ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// whileRead returns a context that ends also when whoever reads what is written to out has gone:
// without a packet to tell of, nothing else would show that.
func whileRead(ctx context.Context, out io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	file, ok := out.(*os.File)
	if !ok {
		return ctx, cancel
	}
	go func() {
		const each = 500 // milliseconds: how long this outlives ctx
		for ctx.Err() == nil {
			// errors and hang-ups are told of unasked (poll(2))
			fds := []unix.PollFd{{Fd: int32(file.Fd())}}
			n, err := unix.Poll(fds, each)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				cancel()
			}
		}
	}()
	return ctx, cancel
}

// writeLine writes a packet as it comes: a line, or a document of YAML.
func (o *options) writeLine(report *dropReport) error {
	return o.writeNext(report, true, false, func(style) string { return report.line() })
}

// line writes a packet for people.
func (r *dropReport) line() string {
	who := fmt.Sprintf("%s  %-24s  %-7s", r.time.Local().Format("15:04:05.000000"), printable(r.label), r.Direction)
	what := etherTypeText(r.EtherType)
	if r.Protocol != "" {
		what = r.flowText()
	}
	why := r.Reason
	if r.Rule >= 0 {
		why = fmt.Sprintf("%s rules[%d]", r.Reason, r.Rule)
		if r.RuleName != "" {
			why = fmt.Sprintf("%s %q", r.Reason, r.RuleName)
		}
	}
	if r.Verdict == conf.Audit.String() {
		why = "would be denied by " + why
	}
	return fmt.Sprintf("%s  %s, %d bytes: %s\n", who, what, r.Length, printable(why))
}

// flowText writes the 5-tuple.
func (r *dropReport) flowText() string {
	protocol := r.Protocol
	if parsed, err := conf.ParseProtocol(protocol); err == nil {
		protocol = protocolText(parsed)
	}
	source, destination := endText(r.Source, r.SourcePort), endText(r.Destination, r.DestinationPort)
	if r.Protocol == conf.ProtocolICMP.String() || r.Protocol == conf.ProtocolICMPv6.String() {
		source, destination = r.Source, r.Destination
		protocol += fmt.Sprintf(" type %d code %d", r.ICMPType, r.ICMPCode)
	}
	return fmt.Sprintf("%s %s > %s", protocol, source, destination)
}

func endText(address string, port uint16) string {
	if port == 0 {
		return address
	}
	if strings.Contains(address, ":") {
		return fmt.Sprintf("[%s]:%d", address, port)
	}
	return fmt.Sprintf("%s:%d", address, port)
}

func etherTypeText(etherType uint16) string {
	if etherType == unix.ETH_P_ARP {
		return "arp"
	}
	return fmt.Sprintf("EtherType %#04x", etherType)
}

// known is what is known of attachments while drops are followed, by the index of the host end.
type known struct {
	node  filters
	names []string // of the pods asked for; none are all
	by    map[int]*knownPod
	// missing are indexes without an attachment, and when they were last looked for.
	missing map[int]time.Time
	read    time.Time // when it was found out which there are; that is done at the first packet
}

// knownPod is an attachment and the names of the rules of its filters, by generation.
type knownPod struct {
	datapath.Attachment
	asked bool // whether it was asked for
	rules map[uint32][]string
	read  time.Time // when its filter was read last
}

const (
	// lookAgain is how long nothing is read again for what was not there: packets may come fast, of
	// an attachment that has gone.
	lookAgain = 200 * time.Millisecond
	// forgetAfter is how long it may not be seen that an attachment was made anew with the same host end.
	forgetAfter = 2 * time.Second
	// mostGenerations is how many of a pod's filters are remembered: packets may be told of after
	// theirs was replaced.
	mostGenerations = 8
)

func newKnown(node filters, names []string) *known {
	k := &known{node: node, names: names, by: map[int]*knownPod{}, missing: map[int]time.Time{}}
	return k
}

// refresh reads which attachments there are. What is known of one that stays is kept.
func (k *known) refresh(now time.Time) {
	k.read = now
	all, _ := k.node.List() // of those that cannot be read, packets are told of without a name
	by := map[int]*knownPod{}
	for _, a := range all {
		p := &knownPod{Attachment: a, asked: len(k.names) == 0, rules: map[uint32][]string{}}
		for _, name := range k.names {
			// a pod that was made anew, under a name that was asked for, is asked for as well
			p.asked = p.asked || names(name, a.Meta) || strings.HasPrefix(a.Meta.ContainerID, name)
		}
		if was, ok := k.by[a.Meta.HostIndex]; ok && was.ID == a.ID && was.Meta.Created.Equal(a.Meta.Created) {
			p.rules, p.read = was.rules, was.read
		}
		by[a.Meta.HostIndex] = p
	}
	k.by = by
	clear(k.missing)
}

// pod returns the attachment with a host end, nil if there is none.
func (k *known) pod(index int, now time.Time) *knownPod {
	if p, ok := k.by[index]; ok && now.Sub(k.read) < forgetAfter {
		return p
	}
	if last, ok := k.missing[index]; ok && now.Sub(last) < lookAgain {
		return nil
	}
	k.refresh(now)
	p, ok := k.by[index]
	if !ok {
		k.missing[index] = now
	}
	return p
}

// ruleName returns the name of a rule of the filter of a generation, "" if it is not known.
func (p *knownPod) ruleName(node filters, generation uint32, rule int, now time.Time) string {
	if _, ok := p.rules[generation]; !ok && now.Sub(p.read) >= lookAgain {
		p.read = now
		if f, err := readFilter(node, p.Attachment); err == nil && f != nil {
			p.remember(f)
		}
	}
	if names := p.rules[generation]; rule >= 0 && rule < len(names) {
		return names[rule]
	}
	return ""
}

// remember notes the names of a filter's rules.
func (p *knownPod) remember(f *inForce) {
	if len(p.rules) >= mostGenerations {
		clear(p.rules)
	}
	rules := make([]string, 0, len(f.Rules))
	for i := range f.Rules {
		rules = append(rules, f.Rules[i].Name)
	}
	p.rules[f.generation] = rules
}

// report returns what is said of an event, false if its pod was not asked for.
func (k *known) report(e datapath.DropEvent) (*dropReport, bool) {
	p := k.pod(e.HostIndex, e.Time)
	if p == nil && len(k.names) > 0 || p != nil && !p.asked {
		return nil, false
	}
	r := &dropReport{
		Time: e.Time.UTC().Format(microseconds), time: e.Time,
		HostInterface: hostInterface{Index: e.HostIndex}, label: fmt.Sprintf("interface %d", e.HostIndex),
		Direction: directionText(e.Direction), Verdict: conf.Deny.String(), Reason: reasonText(e.Reason),
		Rule: e.Rule, Generation: e.Generation, Length: e.Len, EtherType: e.EtherType,
	}
	if e.Audit {
		r.Verdict = conf.Audit.String()
	}
	if p != nil {
		shown := newAttachment(p.Meta)
		r.ContainerID, r.IfName, r.Pod, r.HostInterface = shown.ContainerID, shown.IfName, shown.Pod, shown.HostInterface
		r.label = shown.label()
		if e.Rule >= 0 {
			r.RuleName = p.ruleName(k.node, e.Generation, e.Rule, e.Time)
		}
	}
	if isKnown(e.Source.Addr()) || isKnown(e.Destination.Addr()) {
		r.Protocol = conf.Protocol(e.Protocol).String()
		r.Source, r.SourcePort = addressText(e.Source), e.Source.Port()
		r.Destination, r.DestinationPort = addressText(e.Destination), e.Destination.Port()
		r.ICMPType, r.ICMPCode = e.ICMPType, e.ICMPCode
	}
	return r, true
}

// isKnown: of a packet that could not be parsed the addresses are not.
func isKnown(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() }

func addressText(a netip.AddrPort) string { return a.Addr().Unmap().String() }

func directionText(d bpf.DatapathDirection) string {
	if d == bpf.DatapathDirectionDIRECTION_EGRESS {
		return conf.Egress.String()
	}
	return conf.Ingress.String()
}

func reasonText(reason bpf.DatapathDropReason) string {
	for _, w := range reasonWords {
		if w.key+1 == reason {
			return w.name
		}
	}
	return fmt.Sprintf("reason %d", reason)
}
