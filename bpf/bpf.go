// Package bpf holds the packet path: its C source, and the Go that bpf2go generates from it.
package bpf

//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb -type slot -type slot_flag -type verdict -type direction -type protocol -type table -type kind -type datarec -type peer -type peer_counters -type pod_mode -type pod_flag -type pod_address -type pod_meta -type node_meta Datapath datapath.c -- -O2 -g -Wall -Wextra -Werror -mcpu=v3 -I.
