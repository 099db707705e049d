// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// runFleet shows the members of the fleet.
func runFleet(cmd *cobra.Command) error {
	upstream, _ := cmd.Flags().GetString("upstream")
	asJSON, _ := cmd.Flags().GetBool("json")
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	fleet, text, err := c.members(askTimeout, upstream)
	if isNotFound(err, "") {
		return fmt.Errorf("the Caddy at %s shows no fleet: it is a build without this plugin or with an older one, or no Caddy", c.address)
	}
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if asJSON {
		_, err = out.Write(printableJSON(text))
		return err
	}
	if upstream != "" { // other members may have it
		if rows, _, err := c.list(askTimeout, nil); err == nil {
			if err := (filter{upstream: upstream}).validate(rows); err != nil {
				c.warn("at this Caddy: " + err.Error())
			}
		}
	}
	var show bytes.Buffer
	writeFleet(screenOf(out), &show, fleet, upstream)
	_, err = out.Write(show.Bytes())
	return err
}

var fleetHeader = []string{"MEMBER", "STATE", "HEARD", "NOT UP"}

// writeFleet writes the members of a fleet, and below each of them what is not up there: all
// upstreams or one, then also what it says of the wait for it.
func writeFleet(s screen, to *bytes.Buffer, fleet *view.Fleet, upstream string) {
	writeLine := func(text string) {
		for _, line := range wrap(printable(text), s.columns) {
			to.WriteString(line + "\n")
		}
	}
	writeLine(fleet.Summary())
	for _, fact := range fleet.Facts() {
		writeLine(fact)
	}
	if fleet.Problem != "" {
		s.alarm(to, printable("only this Caddy is known: "+fleet.Problem))
	}
	if fleet.Wait != nil {
		writeLine("wait for " + upstream + ": " + fleet.Wait.String())
	}
	t := s.newTable(to, fleetHeader)
	rows, notUp := make([][]string, len(fleet.Members)), make([][]string, len(fleet.Members))
	for i := range fleet.Members {
		m := &fleet.Members[i]
		notUp[i] = notUpLines(m, upstream)
		count := strconv.Itoa(len(notUp[i]))
		if m.More > 0 {
			count += "+"
			notUp[i] = append(notUp[i], fmt.Sprintf("%d more that it does not name", m.More))
		}
		rows[i] = []string{printable(fleet.NameOf(m)), printable(m.State), heardCell(m), count}
		t.measure(rows[i])
	}
	t.writeRow(fleetHeader, "")
	for i := range fleet.Members {
		m := &fleet.Members[i]
		t.writeRow(rows[i], memberColour(m))
		if fleet.Wait != nil && !fleet.Wait.Done || m.Ack != nil { // later it is not asked any more
			t.writeReason("of the wait: " + cmp.Or(m.Ack.Left(), "quiet"))
		}
		for _, line := range notUp[i] {
			t.writeReason(printable(line))
		}
	}
}

// notUpLines returns a line for each check by which an upstream is not up at a member, of all
// upstreams if none is named.
func notUpLines(m *view.Member, upstream string) (lines []string) {
	for _, n := range m.NotUp {
		if upstream != "" && n.Upstream != upstream {
			continue
		}
		line := n.Upstream + "  " + n.Status
		if n.Lasts > 0 {
			line += " for " + ageCell(seconds(n.Lasts))
		}
		line += " by " + n.Check
		if n.Reason != "" {
			line += ": " + n.Reason
		}
		lines = append(lines, line)
	}
	return lines
}

// heardCell shows how long ago something new of a member was heard.
func heardCell(m *view.Member) string {
	if m.Self {
		return "this Caddy"
	}
	return ageCell(seconds(m.Heard)) + " ago"
}

// seconds returns a number of seconds, bounded by what a duration can be.
func seconds(n float64) time.Duration {
	return time.Duration(min(max(n, 0), (1<<33)) * float64(time.Second))
}

func memberColour(m *view.Member) string {
	switch {
	case m.State == view.MemberLost:
		return red
	case len(m.NotUp) > 0:
		return yellow
	default:
		return green
	}
}
