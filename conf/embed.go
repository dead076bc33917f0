package conf

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
)

//go:embed schema.json
var schema []byte

//go:embed samples/*.conflist
var samples embed.FS

// Schema returns the JSON Schema (draft 2020-12) of the plugin's object in the
// "plugins" of a conflist. It accepts what [Parse] accepts, but for keys given
// twice, of which JSON Schema knows nothing.
func Schema() []byte { return bytes.Clone(schema) }

// Samples returns the sample network configurations, each a *.conflist at the
// root: complete, and differing in the names of their networks and bridges and
// in their addresses, so that all can be in use on one node.
func Samples() fs.FS {
	sub, err := fs.Sub(samples, "samples")
	if err != nil {
		panic(fmt.Sprintf("conf: embedded samples: %v", err)) // the path is constant and valid
	}
	return sub
}
