package main

import (
	"net"
	"strconv"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/datapath"
)

// flowWords are the states of flows, for programs and for people.
var flowWords = map[datapath.FlowState]struct{ word, detail string }{
	datapath.FlowKnown:      {"untranslated", "known to be untranslated"},
	datapath.FlowUnanswered: {"unanswered", "came through, and no answer has yet"},
	datapath.FlowMixed:      {"mixed", "mixed with packets that were sent under other addresses: translated"},
	datapath.FlowOneEnd:     {"oneEnd", "seen at one end only, or not whole at both: translated, lost, or on its way"},
}

// flowNone is the state of a flow of which nothing is known.
const flowNone = "none"

// flowReport is what is known of a flow between two pods.
type flowReport struct {
	Protocol         string `json:"protocol"`
	Source           string `json:"source"`
	SourcePort       uint16 `json:"sourcePort"`
	Destination      string `json:"destination"`
	DestinationPort  uint16 `json:"destinationPort"`
	State            string `json:"state"`
	Sent             uint32 `json:"sent"`
	Delivered        uint32 `json:"delivered"`
	AnswersSent      uint32 `json:"answersSent"`
	AnswersDelivered uint32 `json:"answersDelivered"`
	Seen             string `json:"seen"`
}

// flows notes what is known of the packet's flow if it was named, else of all between the two.
func (t *tracing) flows() error {
	p := &t.packet
	if p.named {
		if t.way.Flow != nil {
			t.report.Flow = flowWords[t.way.Flow.State].word
			t.report.Flows = append(t.report.Flows, newFlowReport(*t.way.Flow))
		}
		return nil
	}
	flows, err := t.node.DirectFlows(t.from, p.source.Addr(), p.destination.Addr())
	if err != nil {
		return t.goneError(t.from, err)
	}
	for _, f := range flows {
		if f.Protocol != p.protocol ||
			p.source.Port() != 0 && p.source.Port() != f.Source.Port() ||
			p.destination.Port() != 0 && p.destination.Port() != f.Destination.Port() {
			continue
		}
		t.report.Flows = append(t.report.Flows, newFlowReport(f))
	}
	return nil
}

func newFlowReport(f datapath.DirectFlow) flowReport {
	report := flowReport{
		Protocol: conf.Protocol(f.Protocol).String(),
		Source:   f.Source.Addr().String(), SourcePort: f.Source.Port(),
		Destination: f.Destination.Addr().String(), DestinationPort: f.Destination.Port(),
		State: flowWords[f.State].word, Sent: f.Sent, Delivered: f.Delivered,
		AnswersSent: f.AnswersSent, AnswersDelivered: f.AnswersDelivered,
	}
	if !f.Seen.IsZero() {
		report.Seen = timestamp(f.Seen)
	}
	return report
}

// end writes an address with its port, which of an echo's answering side is 0.
func (f *flowReport) end(address string, port uint16) string {
	if port == 0 {
		return address
	}
	return net.JoinHostPort(address, strconv.Itoa(int(port)))
}

func (f *flowReport) stateText() string {
	for _, words := range flowWords {
		if words.word == f.State {
			return words.detail
		}
	}
	return f.State
}
