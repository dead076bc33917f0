// Command recorder stands in for a CNI plugin in a directory of plugins, under its name: it notes the call, runs the
// plugin of that name in the directory "real" beside its own directory, and passes on what that says.
//
// A call is a line of JSON, a Call, in the file "calls" beside the directory. As long as there is a file
// "hold-<when>-<plugin>-<command>" there, with when being before or after, a call makes a file "held" and waits.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Call is one call of a plugin.
type Call struct {
	Plugin, Command, ContainerID, IfName, NetNS, Args string

	Stdin, Stdout json.RawMessage `json:",omitempty"`
	Status        int
}

func main() {
	status, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "recorder: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

func run() (status int, err error) {
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		return 1, err
	}
	name, dir := filepath.Base(self), filepath.Dir(filepath.Dir(self))
	call := Call{
		Plugin: name, Command: os.Getenv("CNI_COMMAND"), ContainerID: os.Getenv("CNI_CONTAINERID"),
		IfName: os.Getenv("CNI_IFNAME"), NetNS: os.Getenv("CNI_NETNS"), Args: os.Getenv("CNI_ARGS"),
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1, err
	}
	hold(dir, "before", call)
	cmd := exec.Command(filepath.Join(dir, "real", name))
	var stdout bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, os.Stderr
	err = cmd.Run()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return 1, err
	}
	call.Status = cmd.ProcessState.ExitCode()
	call.Stdin, call.Stdout = rawJSON(stdin), rawJSON(stdout.Bytes())
	noted := note(filepath.Join(dir, "calls"), call)
	hold(dir, "after", call)
	_, err = os.Stdout.Write(stdout.Bytes())
	return call.Status, errors.Join(noted, err)
}

// rawJSON is text if that is JSON, compact, else nothing.
func rawJSON(text []byte) json.RawMessage {
	var compact bytes.Buffer
	if json.Compact(&compact, text) != nil {
		return nil
	}
	return compact.Bytes()
}

// note appends a line by one write, so that calls at the same time do not mix.
func note(path string, call Call) error {
	line, err := json.Marshal(call)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(line, '\n'))
	return errors.Join(err, file.Close())
}

func hold(dir, when string, call Call) {
	path := filepath.Join(dir, "hold-"+when+"-"+call.Plugin+"-"+call.Command)
	for {
		if _, err := os.Stat(path); err != nil {
			return
		}
		_ = os.WriteFile(filepath.Join(dir, "held"), nil, 0o600)
		time.Sleep(10 * time.Millisecond)
	}
}
