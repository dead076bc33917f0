package main

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/xdp-cni/xdp-cni/conf"
)

// Kinds of a change.
const (
	changedSetting = "setting"
	addedSetting   = "first" // where there was no filter before
	changedRule    = "changed"
	addedRule      = "added"
	removedRule    = "removed"
	movedRule      = "moved"
)

// change is a difference between two filters.
type change struct {
	Kind   string `json:"kind"`
	Rule   string `json:"rule"`  // its name; "" for a setting
	Field  string `json:"field"` // of a setting and of a changed rule
	Before string `json:"before"`
	After  string `json:"after"`
}

// diffFilters returns what changes from before, nil for no filter, to after: settings first, then
// rules, in the order of after with the removed ones in front. Rules are the same if their names are.
func diffFilters(before, after *conf.Filter) []change {
	changes := []change{}
	if before == nil {
		before = &conf.Filter{}
		for _, s := range settings(after) {
			changes = append(changes, change{addedSetting, "", s.name, "", s.value})
		}
	} else {
		changes = append(changes, fieldChanges(changedSetting, "", settings(before), settings(after))...)
	}
	was, is := numbersOf(before), numbersOf(after)
	for i := range before.Rules {
		if r := &before.Rules[i]; !has(is, r.Name) {
			changes = append(changes, change{Kind: removedRule, Rule: r.Name, Before: ruleText(r, 0)})
		}
	}
	moved := movedRules(before, after)
	for i := range after.Rules {
		r := &after.Rules[i]
		old, known := was[r.Name]
		if !known {
			changes = append(changes, change{Kind: addedRule, Rule: r.Name, After: ruleText(r, 0)})
			continue
		}
		if moved[r.Name] {
			changes = append(changes, change{Kind: movedRule, Rule: r.Name, Before: strconv.Itoa(old), After: strconv.Itoa(i)})
		}
		changes = append(changes, fieldChanges(changedRule, r.Name, ruleFields(&before.Rules[old]), ruleFields(r))...)
	}
	return changes
}

func has(numbers map[string]int, name string) bool {
	_, ok := numbers[name]
	return ok
}

// numbersOf returns the numbers of rules by name.
func numbersOf(f *conf.Filter) map[string]int {
	numbers := make(map[string]int, len(f.Rules))
	for i := range f.Rules {
		numbers[f.Rules[i].Name] = i
	}
	return numbers
}

// field is one of a filter or of a rule: equal values have equal texts, and the other way round.
type filterField struct{ name, value string }

func settings(f *conf.Filter) []filterField {
	return []filterField{
		{"stateful", strconv.FormatBool(f.Stateful)},
		{"allowHost", strconv.FormatBool(f.AllowHost)},
		{"antiSpoof", strconv.FormatBool(f.AntiSpoof)},
		{"default.egress", f.Default.Egress.String()},
		{"default.ingress", f.Default.Ingress.String()},
		{"maxFlows", strconv.FormatUint(uint64(f.MaxFlows), 10)},
	}
}

func ruleFields(r *conf.Rule) []filterField {
	icmp := "any"
	if r.ICMP != nil {
		icmp = icmpText(r.ICMP)
	}
	return []filterField{
		{"direction", r.Direction.String()},
		{"action", r.Action.String()},
		{remoteKey(r.Direction), listed(r.Remote(), "any", 0)},
		{"except", listed(r.Except, "none", 0)},
		{"protocol", r.Protocol.String()},
		{"ports", listed(r.Ports, "any", 0)},
		{"icmp", icmp},
	}
}

// fieldChanges compares the fields of before and after, which are the same ones.
func fieldChanges(kind, rule string, before, after []filterField) []change {
	var changes []change
	for i := range after {
		if before[i] != after[i] {
			changes = append(changes, change{kind, rule, after[i].name, before[i].value, after[i].value})
		}
	}
	return changes
}

// movedRules returns the names of the rules that do not keep their order: as few as explain how the
// rules that both filters have stand now.
func movedRules(before, after *conf.Filter) map[string]bool {
	was := numbersOf(before)
	var order []int // numbers in before, as they stand in after
	for i := range after.Rules {
		if old, ok := was[after.Rules[i].Name]; ok {
			order = append(order, old)
		}
	}
	moved := map[string]bool{}
	for _, old := range order {
		moved[before.Rules[old].Name] = true
	}
	for _, old := range longestIncreasing(order) {
		delete(moved, before.Rules[old].Name)
	}
	return moved
}

// longestIncreasing returns the longest subsequence of distinct numbers that rises (patience sorting).
func longestIncreasing(numbers []int) []int {
	var tops []int // index of the least last number of a rising sequence, by the length of that less one
	previous := make([]int, len(numbers))
	for i, n := range numbers {
		at, _ := slices.BinarySearchFunc(tops, n, func(top, n int) int { return numbers[top] - n })
		previous[i] = -1
		if at > 0 {
			previous[i] = tops[at-1]
		}
		if at == len(tops) {
			tops = append(tops, i)
		} else {
			tops[at] = i
		}
	}
	if len(tops) == 0 {
		return nil
	}
	var rising []int
	for i := tops[len(tops)-1]; i >= 0; i = previous[i] {
		rising = append(rising, numbers[i])
	}
	slices.Reverse(rising)
	return rising
}

// sameFilter tells whether two filters do the same, word for word.
func sameFilter(a, b *conf.Filter) bool {
	return a != nil && reflect.DeepEqual(diffFilters(a, b), []change{})
}

// line writes a change for people.
func (c change) line() string {
	switch c.Kind {
	case addedRule:
		return fmt.Sprintf("+ rule %q: %s", c.Rule, c.After)
	case removedRule:
		return fmt.Sprintf("- rule %q: %s", c.Rule, c.Before)
	case movedRule:
		return fmt.Sprintf("> rule %q: from rules[%s] to rules[%s]", c.Rule, c.Before, c.After)
	case changedRule:
		return fmt.Sprintf("~ rule %q: %s: %s", c.Rule, c.Field, listChange(c.Before, c.After))
	}
	if c.Kind == addedSetting {
		return fmt.Sprintf("+ %s: %s", c.Field, c.After)
	}
	return fmt.Sprintf("~ %s: %s -> %s", c.Field, c.Before, c.After)
}

// listChange writes how a value, or a list of them, changed.
func listChange(before, after string) string {
	was, is := strings.Split(before, ","), strings.Split(after, ",")
	if len(was) <= mostShown && len(is) <= mostShown {
		return before + " -> " + after
	}
	var parts []string
	for _, side := range []struct {
		sign    string
		of, not []string
	}{{"-", was, is}, {"+", is, was}} {
		there := map[string]bool{}
		for _, value := range side.not {
			there[value] = true
		}
		for _, value := range side.of {
			if !there[value] {
				parts = append(parts, side.sign+value)
			}
		}
	}
	if len(parts) == 0 {
		return "the same in another order"
	}
	return strings.Join(parts, " ")
}

// changesText counts changes by kind, as "2 rules added, 1 setting changed"; "none" if there are none.
func changesText(changes []change) string {
	count := func(kind string) int {
		rules := map[string]bool{} // a rule may have changed in several ways
		for _, c := range changes {
			if c.Kind == kind {
				rules[c.Rule+"\x00"+settingOf(c)] = true
			}
		}
		return len(rules)
	}
	var parts []string
	if len(changes) > 0 && changes[0].Kind == addedSetting {
		parts = append(parts, "the first filter")
	}
	for _, kind := range []struct{ kind, one, many, done string }{
		{changedSetting, "setting", "settings", "changed"},
		{addedRule, "rule", "rules", "added"},
		{removedRule, "rule", "rules", "removed"},
		{changedRule, "rule", "rules", "changed"},
		{movedRule, "rule", "rules", "moved"},
	} {
		switch n := count(kind.kind); n {
		case 0:
		case 1:
			parts = append(parts, "1 "+kind.one+" "+kind.done)
		default:
			parts = append(parts, fmt.Sprintf("%d %s %s", n, kind.many, kind.done))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func settingOf(c change) string {
	if c.Kind == changedSetting {
		return c.Field
	}
	return ""
}
