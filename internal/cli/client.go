// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// askTimeout is how long Caddy may take to answer.
	askTimeout = 10 * time.Second
	// checkTimeout is how long a check may take, which has a timeout of its own.
	checkTimeout = 2 * time.Minute
	// maxAnswer is how much of an answer is read, in bytes.
	maxAnswer = 256 << 20
)

// client asks the admin API of the Caddy that the flags of a command name.
type client struct {
	cmd     *cobra.Command
	address string // of the admin API
}

// newClient returns the client of a command. It warns of a Caddyfile nearby that cannot be read.
func newClient(cmd *cobra.Command) (*client, error) {
	c, unread, err := findClient(cmd)
	if unread != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "warning: the %s in this folder does not say where the admin API is: %s\n", nearby, printable(unread.Error()))
	}
	return c, err
}

// findClient returns the client of a command, and why the Caddyfile nearby cannot be read.
func findClient(cmd *cobra.Command) (c *client, unread, err error) {
	address, _ := cmd.Flags().GetString("address")
	config, _ := cmd.Flags().GetString("config")
	adapter, _ := cmd.Flags().GetString("adapter")
	var adapted []byte
	if address == "" && config == "" && adapter == "" {
		if adapted, unread = adaptNearby(); adapted != nil {
			config = nearby
		}
	}
	admin, err := caddycmd.DetermineAdminAPIAddress(address, adapted, config, adapter)
	if err != nil {
		return nil, unread, fmt.Errorf("finding out the address of the admin API: %v", err)
	}
	parsed, err := caddy.ParseNetworkAddress(admin)
	if err != nil || !parsed.IsUnixNetwork() && !parsed.IsFdNetwork() && (parsed.StartPort == 0 || parsed.PortRangeSize() > 1 || strings.Contains(parsed.Host, "/")) {
		return nil, unread, fmt.Errorf("the address of the admin API must be like localhost:2019 or unix//run/caddy-admin.sock; got %q", admin)
	}
	return &client{cmd: cmd, address: admin}, unread, nil
}

// nearby is the config that Caddy's commands use if none is named, where it exists.
const nearby = "Caddyfile"

// adaptNearby returns the config in the current folder as JSON, nil if there is none.
func adaptNearby() ([]byte, error) {
	text, err := os.ReadFile(nearby)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(text, map[string]any{"filename": nearby})
	return adapted, err
}

// list returns the upstreams that a query selects, all if it is nil.
func (c *client) list(limit time.Duration, query url.Values) ([]view.Upstream, []byte, error) {
	text, err := c.ask(limit, http.MethodGet, "/alive/upstreams", query, nil)
	if err != nil {
		return nil, nil, err
	}
	rows, err := parseRows(text)
	return rows, text, err
}

// pools returns the pools that a query selects. It returns none if Caddy does not list pools:
// it may run since before it could.
func (c *client) pools(limit time.Duration, query url.Values) ([]view.Pool, error) {
	text, err := c.ask(limit, http.MethodGet, "/alive/pools", query, nil)
	if isNotFound(err, "") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pools []view.Pool
	if err := json.Unmarshal(text, &pools); err != nil {
		return nil, errNoAnswer(err)
	}
	return pools, nil
}

// members returns the fleet as Caddy answers it, with the wait for an upstream unless that is
// empty.
func (c *client) members(limit time.Duration, upstream string) (*view.Fleet, []byte, error) {
	var query url.Values
	if upstream != "" {
		query = url.Values{"upstream": {upstream}}
	}
	text, err := c.ask(limit, http.MethodGet, "/alive/fleet", query, nil)
	if err != nil {
		return nil, nil, err
	}
	fleet := new(view.Fleet)
	if err := json.Unmarshal(text, fleet); err != nil {
		return nil, nil, errNoAnswer(err)
	}
	return fleet, text, nil
}

// patch changes an upstream, and warns if that could not be stored.
func (c *client) patch(limit time.Duration, upstream, pool string, change map[string]any) ([]view.Upstream, error) {
	query := url.Values{"upstream": {upstream}}
	if pool != "" {
		query.Set("pool", pool)
	}
	body, err := json.Marshal(change)
	if err != nil {
		return nil, err
	}
	text, err := c.ask(limit, http.MethodPatch, "/alive/upstreams", query, body)
	if err != nil {
		return nil, err
	}
	rows, err := parseRows(text)
	for _, row := range rows {
		if row.Persisted != nil && !*row.Persisted {
			c.warn("applies to this instance, but could not be stored; it is stored when the storage works again")
			break
		}
	}
	return rows, err
}

// check checks an upstream at once.
func (c *client) check(limit time.Duration, upstream string) ([]view.Upstream, error) {
	text, err := c.ask(limit, http.MethodPost, "/alive/check", url.Values{"upstream": {upstream}}, nil)
	if err != nil {
		return nil, err
	}
	return parseRows(text)
}

// fleet returns the name of the fleet of that Caddy, and how often its members read
// what others have set. The name is empty if the Caddy is in no fleet.
func (c *client) fleet(limit time.Duration) (name string, syncInterval time.Duration, err error) {
	text, err := c.ask(limit, http.MethodGet, "/config/apps/alive", nil, nil)
	if err != nil {
		return "", 0, err
	}
	var app struct { // null changes nothing
		Fleet        string         `json:"fleet"`
		SyncInterval caddy.Duration `json:"sync_interval"`
	}
	if err := json.Unmarshal(text, &app); err != nil {
		return "", 0, fmt.Errorf("reading the config of Caddy at %s: %v", c.address, err)
	}
	if app.Fleet == "" {
		return "", 0, nil
	}
	return app.Fleet, cmp.Or(time.Duration(app.SyncInterval), limits.DefaultSyncInterval), nil
}

// timeoutUntil is how long Caddy may take to answer a command that waits until a
// deadline: at least as long as its storage may take.
func timeoutUntil(deadline time.Time) time.Duration {
	return min(askTimeout, max(settings.Timeout+time.Second, time.Until(deadline)))
}

func (c *client) warn(text string) { fmt.Fprintln(c.cmd.ErrOrStderr(), "warning: "+text) }

// pause waits. It returns an error at once if the command is interrupted.
func (c *client) pause(wait time.Duration) error {
	select {
	case <-c.cmd.Context().Done():
		return context.Cause(c.cmd.Context())
	case <-time.After(wait):
		return nil
	}
}

func parseRows(text []byte) ([]view.Upstream, error) {
	var rows []view.Upstream
	if err := json.Unmarshal(text, &rows); err != nil {
		return nil, errNoAnswer(err)
	}
	for i := range rows {
		if rows[i].Backup { // a Caddy that runs since before there were groups has no number
			rows[i].Group = max(1, rows[i].Group)
		}
	}
	return rows, nil
}

func errNoAnswer(err error) error {
	return fmt.Errorf("this is no answer of Caddy's admin API: %v", err)
}

// answerError is an answer that is an error.
type answerError struct {
	text, code string // the code is empty if the answer has none
	isNotFound bool
}

// Error returns the text.
func (e *answerError) Error() string { return e.text }

// isNotFound reports whether an error is that there is no such thing, as the code says. If the
// code is empty, there is no such part of the admin API: Caddy may run since before it had it.
func isNotFound(err error, code string) bool {
	failed, isAnswer := errors.AsType[*answerError](err)
	return isAnswer && failed.isNotFound && failed.code == code
}

// ask sends one request, and gives up after the time limit.
func (c *client) ask(limit time.Duration, method, path string, query url.Values, body []byte) ([]byte, error) {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	type answer struct {
		text []byte
		err  error
	}
	// AdminAPIRequest takes no context and has no timeout. If it does not return, its
	// goroutine ends with the process of the command.
	answered := make(chan answer, 1)
	go func() {
		text, err := c.request(method, path, body)
		answered <- answer{text, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-answered:
		return a.text, a.err
	case <-timer.C:
		return nil, fmt.Errorf("no answer from Caddy at %s within %s", c.address, limit.Round(time.Millisecond))
	case <-c.cmd.Context().Done():
		return nil, context.Cause(c.cmd.Context())
	}
}

func (c *client) request(method, path string, body []byte) ([]byte, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	response, err := caddycmd.AdminAPIRequest(c.address, method, path, nil, reader)
	if err != nil {
		return nil, c.explain(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of Caddy at %s: %v", c.address, err)
	}
	return text, nil
}

// errorAnswer matches the status and the body of an answer in the error that
// AdminAPIRequest makes of it.
var errorAnswer = regexp.MustCompile(`(?s)HTTP (\d+): (.*)$`)

// explain says in one line what is wrong.
func (c *client) explain(err error) error {
	match := errorAnswer.FindStringSubmatch(err.Error())
	if match == nil {
		return fmt.Errorf("cannot reach Caddy at %s: is it running, and is its admin API there? %s", c.address, printable(err.Error()))
	}
	status, body := match[1], match[2]
	var answer struct {
		Error string `json:"error"`
		Code  string `json:"code"` // only the plugin's own answers have one
	}
	_ = json.Unmarshal([]byte(body), &answer) // no JSON is an answer without both
	isNotFound := status == strconv.Itoa(http.StatusNotFound)
	switch {
	case isNotFound && answer.Code == "":
		text := fmt.Sprintf("the Caddy at %s has no %s: it is a build without this plugin, or no Caddy", c.address, caddy.ModuleID("admin.api.alive"))
		return &answerError{text: text, isNotFound: true}
	case answer.Error == "":
		return fmt.Errorf("the server at %s answers with the status %s", c.address, status)
	}
	return &answerError{text: printable(answer.Error), code: answer.Code, isNotFound: isNotFound}
}
