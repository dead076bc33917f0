package datapath

import (
	"context"
	"errors"
	"time"

	"github.com/xdp-cni/xdp-cni/plugin/filter"
)

// Policy is a filter for a pod: as the programs decide by it, and as people read it.
type Policy struct {
	Compiled *filter.Policy
	// Source is the filter as JSON, which conf.ParseFilter reads. It is kept with the attachment.
	Source []byte
}

// ErrNoPolicy: the attachment has no filter.
var ErrNoPolicy = errors.New("no filter is in force")

// PolicyState is the policy in force for an attachment, and what it did.
type PolicyState struct {
	// Generation differs from that of the policy before, of the same attachment.
	Generation uint32
	Source     []byte
	// Rules are by the rule's number in the filter.
	Rules []RuleStats
}

// RuleStats is what a rule decided since its policy came in force: the first packets of flows, not
// those that passed with their flow.
type RuleStats struct {
	Counter
	// Last is when it last decided, to the length of a clock tick; zero for never.
	Last time.Time
}

// ReadPolicy reads the policy in force: ErrNoPolicy if there is none, fs.ErrNotExist if the
// attachment is gone. It takes no lock.
func (d *Datapath) ReadPolicy(a Attachment) (*PolicyState, error) {
	return nil, errors.ErrUnsupported
}

// ReplacePolicy puts a policy in force for an attachment in one step, in place of the one there, or
// as its first one. Until then, and on any error, the old one decides. The flows that the pod has
// stay, and are judged by the new policy with their next packet; their number (MaxFlows) is that
// of the first policy as long as the attachment lives.
func (d *Datapath) ReplacePolicy(ctx context.Context, a Attachment, policy Policy) error {
	return errors.ErrUnsupported
}
