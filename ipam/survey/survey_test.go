package survey

import (
	"reflect"
	"testing"

	"github.com/xdp-cni/xdp-cni/bpf"
)

// TestPodMeta: the layout that is read is the one that the chained plugin writes.
func TestPodMeta(t *testing.T) {
	compareLayout(t, reflect.TypeFor[podMeta](), reflect.TypeFor[bpf.DatapathPodMeta]())
	compareLayout(t, reflect.TypeFor[podAddress](), reflect.TypeFor[bpf.DatapathPodAddress]())
}

func compareLayout(t *testing.T, have, want reflect.Type) {
	t.Helper()
	if have.Size() != want.Size() {
		t.Errorf("%s has %d bytes, want %d", have, have.Size(), want.Size())
	}
	for _, field := range reflect.VisibleFields(want) {
		if field.Name == "_" { // which makes it the layout of C
			continue
		}
		own, ok := have.FieldByName(field.Name)
		switch {
		case !ok:
			t.Errorf("%s has no %s", have, field.Name)
		case own.Offset != field.Offset || own.Type.Size() != field.Type.Size():
			t.Errorf("%s of %s is at %d with %d bytes, want %d and %d", field.Name, have, own.Offset, own.Type.Size(), field.Offset, field.Type.Size())
		}
	}
}
