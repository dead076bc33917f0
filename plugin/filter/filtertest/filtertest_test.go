package filtertest

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/xdp-cni/xdp-cni/conf"
	"github.com/xdp-cni/xdp-cni/plugin/filter/model"
)

// TestRandomFilterIsValid: what is made is what a configuration can hold.
func TestRandomFilterIsValid(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 300 {
		f := RandomFilter(rng)
		text, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := conf.ParseFilter(text)
		if err != nil {
			t.Fatalf("%v, in %s", err, text)
		}
		if !reflect.DeepEqual(again, f) {
			t.Fatalf("%s is read as %+v", text, again)
		}
	}
}

// TestFrameHoldsPacket parses frames back.
func TestFrameHoldsPacket(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for range 300 {
		f := RandomFilter(rng)
		traffic := NewTraffic(rng, f)
		for range 300 {
			p, d := traffic.Next()
			frame := Frame(rng, p)
			if got := Parse(frame, d); !reflect.DeepEqual(got, p) {
				t.Fatalf("%x\n is %s\nfor %s", frame, show(t, got), show(t, p))
			}
		}
	}
}

func show(t *testing.T, p model.Packet) string {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestTrafficReachesEverything: every step of the model decides on some packets, for every reason.
func TestTrafficReachesEverything(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	steps, reasons := make(map[model.Step]int), make(map[model.Reason]int)
	audited, judgedAnew := 0, 0
	for range 300 {
		f := RandomFilter(rng)
		m, traffic, now := model.New(Pod(), f), NewTraffic(rng, f), time.Duration(0)
		for range 300 {
			p, d := traffic.Next()
			now += time.Duration(rng.IntN(int(5 * time.Second)))
			if chance(rng, 100) {
				m.Replace(RandomFilter(rng))
			}
			v := m.Decide(p, d, now)
			steps[v.Step]++
			reasons[v.Reason]++
			if v.WouldDeny {
				audited++
			}
			if v.Step == model.StepFlow && v.Rule >= 0 {
				judgedAnew++
			}
		}
	}
	for s := model.StepParse; s <= model.StepRules; s++ {
		if steps[s] < 200 {
			t.Errorf("step %d decided %d times", s, steps[s])
		}
	}
	for r := model.ReasonNone; r <= model.ReasonFragment; r++ {
		if reasons[r] < 200 {
			t.Errorf("reason %s %d times", r, reasons[r])
		}
	}
	if audited < 200 || judgedAnew < 50 {
		t.Errorf("%d audited, %d judged anew", audited, judgedAnew)
	}
	t.Logf("steps %v, reasons %v, %d audited, %d judged anew", steps, reasons, audited, judgedAnew)
}

// FuzzParse: no frame makes the parser, the model or what they agree on fail.
func FuzzParse(f *testing.F) {
	rng := rand.New(rand.NewPCG(13, 14))
	traffic := NewTraffic(rng, RandomFilter(rng))
	for range 50 {
		p, d := traffic.Next()
		f.Add(Frame(rng, p), d == conf.Ingress)
	}
	f.Fuzz(func(t *testing.T, frame []byte, ingress bool) {
		d := conf.Egress
		if ingress {
			d = conf.Ingress
		}
		p := Parse(frame, d)
		m := model.New(Pod(), RandomFilter(rand.New(rand.NewPCG(1, uint64(len(frame))))))
		if v := m.Decide(p, d, 0); v.Pass && p.Broken {
			t.Errorf("%x passes", frame)
		}
	})
}
