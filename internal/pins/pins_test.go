package pins

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestID(t *testing.T) {
	for _, test := range []struct{ containerID, ifname, want string }{
		{"abc", "eth0", "abc__eth0"},
		{"a.b_c-d", "eth0.5", "a_2eb_5fc-d__eth0_2e5"},
		{"a_", "_b", "a_5f___5fb"},
		{"é", "net1", "_c3_a9__net1"},
	} {
		if got := ID(test.containerID, test.ifname); got != test.want {
			t.Errorf("ID(%q, %q) = %q, want %q", test.containerID, test.ifname, got, test.want)
		}
	}
	long := strings.Repeat("a.", 120)
	a, b := ID(long+"x", "eth0"), ID(long+"y", "eth0")
	if a == b || len(a) > maxName || !strings.HasPrefix(a, idHashed) {
		t.Errorf("long IDs: %q and %q", a, b)
	}
}

func TestNetworkID(t *testing.T) {
	for network, want := range map[string]string{"pods": "pods", "a.b_c": "a_2eb_5fc"} {
		if got := NetworkID(network); got != want {
			t.Errorf("NetworkID(%q) = %q, want %q", network, got, want)
		}
	}
	long := strings.Repeat("a.", 120)
	if a, b := NetworkID(long+"x"), NetworkID(long+"y"); a == b || len(a) > maxName {
		t.Errorf("long IDs: %q and %q", a, b)
	}
}

// FuzzID looks for two attachments with one name, and for names that bpffs refuses.
func FuzzID(f *testing.F) {
	f.Add("abc", "eth0", "abc_", "eth0")
	f.Add("a", "b__c", "a__b", "c")
	f.Add("a_2e", "b", "a.", "b")
	f.Add("_", "_5f", "__", "5f")
	valid := regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	f.Fuzz(func(t *testing.T, containerA, ifnameA, containerB, ifnameB string) {
		a, b := ID(containerA, ifnameA), ID(containerB, ifnameB)
		if (a == b) != (containerA == containerB && ifnameA == ifnameB) {
			t.Errorf("ID(%q, %q) = %q and ID(%q, %q) = %q", containerA, ifnameA, a, containerB, ifnameB, b)
		}
		if !valid.MatchString(a) || len(a) > maxName || a == nodeName {
			t.Errorf("ID(%q, %q) = %q is no name for a directory in bpffs", containerA, ifnameA, a)
		}
	})
}

func lockFor(t *testing.T, limit time.Duration, lock func(context.Context) (*Lock, error)) (*Lock, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return lock(ctx)
}

func TestLock(t *testing.T) {
	root := NewRoot(filepath.Join(t.TempDir(), "a", "root"))
	held, err := lockFor(t, time.Second, root.Lock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFor(t, 20*time.Millisecond, root.Lock); !errors.Is(err, ErrBusy) {
		t.Errorf("a lock that is held: %v", err)
	}
	got := make(chan error)
	go func() {
		lock, err := lockFor(t, 10*time.Second, root.Lock)
		lock.Unlock()
		got <- err
	}()
	held.Unlock()
	if err := <-got; err != nil {
		t.Errorf("a lock that is released meanwhile: %v", err)
	}
}

// TestLockOfWhatGoes: who waits for the lock of a directory that is removed meanwhile must not
// believe that it holds the one that took its place.
func TestLockOfWhatGoes(t *testing.T) {
	root := NewRoot(filepath.Join(t.TempDir(), "root"))
	held, err := lockFor(t, time.Second, root.Lock)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		lock *Lock
		err  error
	}
	got := make(chan result)
	go func() {
		lock, err := lockFor(t, 10*time.Second, root.Lock)
		got <- result{lock, err}
	}()
	time.Sleep(20 * time.Millisecond) // so that it mostly waits on the old directory; right either way
	root.Prune()
	held.Unlock()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.lock.Unlock()
	if _, err := lockFor(t, 20*time.Millisecond, root.Lock); !errors.Is(err, ErrBusy) {
		t.Errorf("a second lock of the root: %v", err)
	}
	if _, err := LockDir(t.Context(), filepath.Join(root.String(), "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock of no directory: %v", err)
	}
}

func TestRemoveAllLast(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	if err := RemoveAll(dir, "meta"); err != nil {
		t.Errorf("a directory that is not there: %v", err)
	}
	for _, name := range []string{"meta", "sub/a", "b"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveAll(dir, "meta"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestListsAndPrune(t *testing.T) {
	root := NewRoot(filepath.Join(t.TempDir(), "root"))
	if ids, err := root.Pods(); err != nil || len(ids) > 0 {
		t.Errorf("pods of no root: %v, %v", ids, err)
	}
	if err := root.Prepare(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root.Pod("a__eth0"), root.Staged("b__eth0"), root.StagedNode()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pods, _ := root.Pods()
	staged, _ := root.StagedPods()
	if len(pods) != 1 || pods[0] != "a__eth0" || len(staged) != 1 || staged[0] != "b__eth0" {
		t.Errorf("pods %v, staged %v", pods, staged)
	}
	root.Prune() // not empty: stays
	if _, err := os.Stat(root.Pod("a__eth0")); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{root.Pod("a__eth0"), root.Staged("b__eth0"), root.StagedNode()} {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	root.Prune()
	if _, err := os.Stat(root.String()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the root is still there: %v", err)
	}
}

func TestMountable(t *testing.T) {
	dir := t.TempDir()
	if err := NewRoot(filepath.Join(dir, "new", "root")).Mountable(); err != nil {
		t.Errorf("a root to be made: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewRoot(dir).Mountable(); !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a directory with a file in it: %v", err)
	}
	if err := NewRoot(filepath.Join(dir, "precious")).Mountable(); !errors.Is(err, ErrNoBPFFS) {
		t.Errorf("a file: %v", err)
	}
}
