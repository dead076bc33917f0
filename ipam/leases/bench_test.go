package leases

import (
	"fmt"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/ipam/addrs"
)

// BenchmarkAllocate is an ADD and two DEL without the start of their processes, by leases held.
func BenchmarkAllocate(b *testing.B) {
	for _, held := range []int{10, 1_000, 50_000} {
		b.Run(fmt.Sprint(held), func(b *testing.B) {
			o := newOptions(b)
			o.Survey = func() (Survey, error) { return Survey{}, nil }
			sets := []addrs.Set{set("10.0.0.0/15")}
			s, err := Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			list := make([]Lease, held)
			a := sets[0][0].First
			for i := range list {
				a = a.Next()
				list[i] = Lease{a, owned(fmt.Sprint(i)), time.Now()}
			}
			if _, err := s.Import(list); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Allocate(owned("first"), sets, nil); err != nil {
				b.Fatal(err)
			}
			s.Close()
			for b.Loop() {
				for _, do := range []func(*Store) error{
					func(s *Store) error { _, err := s.Allocate(owned("new"), sets, nil); return err },
					func(s *Store) error { _, err := s.Release(owned("new")); return err },
					func(s *Store) error { _, err := s.Release(owned("new")); return err },
				} {
					s, err := Open(b.Context(), o)
					if err != nil {
						b.Fatal(err)
					}
					if err := do(s); err != nil {
						b.Fatal(err)
					}
					s.Close()
				}
			}
		})
	}
}
