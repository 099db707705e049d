// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// LogLine is a line of Caddy's log, as far as tests look at it.
type LogLine struct {
	Level    string `json:"level"`
	Logger   string `json:"logger"`
	Msg      string `json:"msg"`
	Upstream string `json:"upstream"`
	Check    string `json:"check"`
	Reason   string `json:"reason"`
	Previous string `json:"previous"`
	Draining bool   `json:"draining"`
}

// Lines returns the lines of Caddy's log whose message begins with a text.
func (c *Caddy) Lines(msg string) (found []LogLine) {
	c.T.Helper()
	log, err := os.ReadFile(c.LogFile())
	if err != nil {
		c.T.Fatal(err)
	}
	for text := range strings.Lines(string(log)) {
		var line LogLine
		// the last may be half written
		if err := json.Unmarshal([]byte(text), &line); err == nil && strings.HasPrefix(line.Msg, msg) {
			found = append(found, line)
		}
	}
	return found
}

// Logged counts the lines of Caddy's log that have a text.
func (c *Caddy) Logged(text string) int {
	c.T.Helper()
	log, err := os.ReadFile(c.LogFile())
	if err != nil {
		c.T.Fatal(err)
	}
	return bytes.Count(log, []byte(text))
}

// LogFile is where Caddy logs to.
func (c *Caddy) LogFile() string { return filepath.Join(c.Dir, "caddy.log") }

// showLog helps to find out why a test failed.
func (c *Caddy) showLog() {
	text, err := os.ReadFile(c.LogFile())
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	c.T.Logf("the end of Caddy's log:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
}
