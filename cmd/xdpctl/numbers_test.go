package main

import (
	"math"
	"testing"
	"time"
)

func TestNumbers(t *testing.T) {
	people, exact := numbers{}, numbers{exact: true}
	for _, test := range []struct{ have, want string }{
		{people.packets(0), "0"},
		{people.packets(999), "999"},
		{people.packets(1000), "1.0k"},
		{people.packets(1249), "1.2k"},
		{people.packets(99_949), "99.9k"},
		{people.packets(99_960), "100k"},
		{people.packets(999_499), "999k"},
		{people.packets(999_500), "1.0M"},
		{people.packets(math.MaxUint64), "18.4E"},
		{people.bytes(0), "0 B"},
		{people.bytes(1023), "1023 B"},
		{people.bytes(1024), "1.0 KiB"},
		{people.bytes(1023*1024 + 600), "1.0 MiB"},
		{people.bytes(3565158), "3.4 MiB"},
		{people.bytes(math.MaxUint64), "16.0 EiB"},
		{people.packetRate(0), "0"},
		{people.packetRate(0.04), "0"},
		{people.packetRate(0.5), "0.5"},
		{people.packetRate(12.6), "13"},
		{people.packetRate(1_234_567), "1.2M"},
		{people.byteRate(2048), "2.0 KiB"},
		{exact.packets(math.MaxUint64), "18446744073709551615"},
		{exact.bytes(1 << 20), "1048576"},
		{exact.packetRate(1234567.89), "1234567.9"},
		{exact.byteRate(2048), "2048"},
		{people.nonzero(nil), "-"},
		{people.nonzero(tally{{"tcp", counter{}}, {"udp", counter{Packets: 1500}}, {"icmp", counter{Packets: 1}}}), "udp 1.5k, icmp 1"},
		{age(-time.Second), "0s"},
		{age(59 * time.Second), "59s"},
		{age(61 * time.Second), "1m"},
		{age(3*time.Hour + 20*time.Minute), "3h20m"},
		{age(49 * time.Hour), "2d"},
	} {
		if test.have != test.want {
			t.Errorf("%q, want %q", test.have, test.want)
		}
	}
}

func TestTable(t *testing.T) {
	table := table{columns: append(text("NAME"), number("COUNTED", "A", "B")...)}
	table.add("pod\x1b[2J", "1", "22")
	table.add("ü", "333")
	// the name of a group may be wider than its columns
	want := "" +
		"         - COUNTED -\n" +
		"NAME       A       B\n" +
		"pod?[2J    1      22\n" +
		"ü        333\n"
	if have := table.String(); have != want {
		t.Errorf("table:\n%s\nwant:\n%s", have, want)
	}
}
