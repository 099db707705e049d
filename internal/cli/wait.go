// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// isInFleet reports whether Caddy shows a fleet. It does not if it runs since before it could.
// The config is asked first, since Caddy logs each of its answers 404 as an error.
func isInFleet(c *client, limit time.Duration) (bool, error) {
	if name, _, err := c.fleet(limit); err == nil && name == "" {
		return false, nil
	}
	_, _, err := c.members(limit, "")
	if isNotFound(err, "") || isNotFound(err, noFleet) {
		return false, nil
	}
	return err == nil, err
}

// noFleet is the code of the error that Caddy is in no fleet.
const noFleet = "no_fleet"

// announcedWait is the wait that is announced to a fleet. It lasts longer than the command
// waits, so that its last question is still answered.
func announcedWait(wait time.Duration) (string, error) {
	if wait > limits.MaxDuration {
		return "", errors.New("--wait must not be longer than 24h in a fleet")
	}
	return min(wait+askTimeout, limits.MaxDuration).String(), nil
}

// fleetWait waits until all members of a fleet have ended their requests to an upstream.
type fleetWait struct {
	*client
	setting    view.Upstream // the upstream, and the mode that was set
	longest    time.Duration
	ignoreLost bool
}

// run waits. It says now and then what it waits for.
func (w fleetWait) run() error {
	name := printable(w.setting.Upstream)
	deadline, next := time.Now().Add(w.longest), time.Now().Add(progressInterval)
	for {
		if err := w.pause(max(0, min(waitInterval, time.Until(deadline)))); err != nil {
			return err
		}
		fleet, _, err := w.members(timeoutUntil(deadline), w.setting.Upstream)
		if err != nil {
			return err
		}
		switch wait := fleet.Wait; {
		case wait == nil:
			return fmt.Errorf("%s: the Caddy at %s does not know of this wait any more: it was restarted, or is in another fleet now", name, w.address)
		case wait.Failed != "":
			return fmt.Errorf("%s: %s", name, printable(wait.Failed))
		case wait.Done, wait.Quiet && w.ignoreLost:
			fmt.Fprintf(w.cmd.OutOrStdout(), "%s: %s\n", name, printable(w.success(fleet)))
			return nil
		}
		pending := printable(w.pending(fleet.Wait))
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%s: after %s, %s", name, w.longest, pending)
		}
		if !time.Now().Before(next) {
			next = time.Now().Add(progressInterval)
			fmt.Fprintf(w.cmd.OutOrStdout(), "%s: %s\n", name, pending)
		}
	}
}

// success says that the wait has ended well.
func (w fleetWait) success(fleet *view.Fleet) string {
	quiet := fmt.Sprintf("all %d members of the fleet %s are quiet", fleet.Live(), fleet.Fleet)
	if fleet.Live() == 1 {
		quiet = fmt.Sprintf("the only member of the fleet %s is quiet", fleet.Fleet)
	}
	quiet += ": nothing is in flight" + butBound(w.bound(fleet.Wait))
	if lost := fleet.Wait.Lost; len(lost) > 0 {
		quiet += "; ignored: " + strings.Join(view.Few(lost), "; ")
	}
	return quiet
}

// pending says what the wait waits for.
func (w fleetWait) pending(wait *view.Wait) string {
	pending := slices.Clone(wait.Pending)
	if !w.ignoreLost {
		pending = append(pending, wait.Lost...)
	}
	if len(pending) == 0 {
		pending = []string{"members may be there that have had no time to answer"}
	}
	text := strings.Join(view.Few(pending), "; ")
	if bound := w.bound(wait); bound != "" {
		text += "; " + bound
	}
	return text
}

// bound says how many requests clients send at all members that are bound to the upstream, as
// [boundTraffic] does for one.
func (w fleetWait) bound(wait *view.Wait) string {
	row := w.setting
	row.Bound = wait.Bound
	return boundTraffic([]view.Upstream{row})
}
