// Package samples has XDP programs to read and to run on pods, each in an object file of its own: docs/samples.md says
// what they do, and how they are named in a network configuration.
package samples

//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Verdicts verdicts.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Sources sources.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Echo echo.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Ports ports.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Vlan vlan.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Switch switch.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Router router.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Cpus cpus.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
//go:generate go tool bpf2go -cc $BPF2GO_CC -strip $BPF2GO_STRIP -target bpfel,bpfeb Blocklist blocklist.c -- -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -I.
