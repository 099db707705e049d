// SPDX-License-Identifier: Apache-2.0

package view

import "fmt"

// Fleet is what one member of a fleet knows of all its members.
type Fleet struct {
	Fleet string `json:"fleet"`
	// Problem is why only this member is known, empty while the storage works.
	Problem string `json:"problem"`
	// SyncInterval is how often members look for news, in seconds.
	SyncInterval float64 `json:"sync_interval"`
	// Probers is how many members probe each upstream at its interval, 0 if all do.
	Probers int `json:"probers"`
	// ProbesAlone is why this member probes all upstreams at their intervals although
	// Probers is set, empty if it does not.
	ProbesAlone string `json:"probes_alone,omitempty"`
	// Members are all that are not forgotten: this one first, then by name.
	Members []Member `json:"members"`
	// Wait is the newest wait for the upstream that the request names, null if there is none.
	Wait *Wait `json:"wait"`
}

// The states of members.
const (
	MemberLive = "live" // something new of it was heard
	MemberLost = "lost" // nothing new was heard for some time: it may still send requests
)

// Member is one Caddy of a fleet.
type Member struct {
	// ID is new with each start of the process.
	ID string `json:"id"`
	// Member is its name, which is that of its host if the config gives none.
	Member string `json:"member"`
	// Self says that it is the member that answers.
	Self bool `json:"self"`
	// State is live or lost.
	State string `json:"state"`
	// Heard is how many seconds ago something new of it was heard.
	Heard float64 `json:"heard"`
	// NotUp are the upstreams that are not up there. More is how many did not fit.
	NotUp []NotUp `json:"not_up"`
	More  int     `json:"more"`
	// Ack is what it says of the upstream that is waited for, null if it says nothing.
	Ack *Ack `json:"ack"`
}

// NotUp is one upstream under one check that is not up at a member.
type NotUp struct {
	Upstream string `json:"upstream"`
	Check    string `json:"check"`
	Status   string `json:"status"`
	// Reason is why the last probe that failed did.
	Reason string `json:"reason"`
	// Lasts is for how many seconds, 0 if that is not known.
	Lasts float64 `json:"lasts"`
}

// Ack is what a member says of an upstream that another member waits for.
type Ack struct {
	// Follows says that it follows the mode that is waited for.
	Follows bool `json:"follows"`
	// InFlight is how many requests it has in flight.
	InFlight int `json:"in_flight"`
	// Bound is how many requests it sent in the last minute because their clients are bound
	// to the upstream.
	Bound int `json:"bound"`
	// Gets says that it still sends new requests: no other upstream serves there.
	Gets bool `json:"gets"`
	// Quiet says that it follows the mode, has nothing in flight, and sends nothing new.
	Quiet bool `json:"quiet"`
}

// Wait is a wait for all members to end their requests to an upstream.
type Wait struct {
	// Done says that all live members are quiet, and that no member is lost.
	Done bool `json:"done"`
	// Quiet says that all live members are quiet, whether or not members are lost. As with
	// Done, each member had the time to say that it is there.
	Quiet bool `json:"quiet"`
	// Failed is why the wait cannot succeed, empty if it can.
	Failed string `json:"failed"`
	// Pending are the live members that are not quiet yet, each with what it has still to do,
	// like "edge-7: 3 in flight".
	Pending []string `json:"pending"`
	// Lost are the lost members, like "edge-9: not heard for 41s, it may still send requests".
	Lost []string `json:"lost"`
	// Bound is how many requests all members sent in the last minute because their clients
	// are bound to the upstream.
	Bound int `json:"bound"`
}

// Live returns how many members are live.
func (f *Fleet) Live() (live int) {
	for i := range f.Members {
		if f.Members[i].State == MemberLive {
			live++
		}
	}
	return live
}

// Summary says in one sentence how many members there are, and how many upstreams are not up
// at one of them at least.
func (f *Fleet) Summary() string {
	text := fmt.Sprintf("fleet %s: %s", f.Fleet, count(len(f.Members), "member"))
	if lost := len(f.Members) - f.Live(); lost > 0 {
		text += fmt.Sprintf(", %d lost", lost)
	}
	upstreams, more := make(map[string]bool), false
	for i := range f.Members {
		if f.Members[i].State != MemberLive {
			continue // what it said may no longer be so
		}
		more = more || f.Members[i].More > 0
		for _, n := range f.Members[i].NotUp {
			upstreams[n.Upstream] = true
		}
	}
	n, least, verb := len(upstreams), "", "are"
	if more { // some did not fit
		least = "at least "
	}
	if n == 1 {
		verb = "is"
	}
	if n == 0 && !more {
		if len(f.Members) > f.Live() || f.Problem != "" {
			return text + "; all upstreams are up at the live members"
		}
		return text + "; all upstreams are up everywhere"
	}
	return text + fmt.Sprintf("; %s%s %s not up somewhere", least, count(n, "upstream"), verb)
}

// Facts say what is special about the probes, one sentence each, none if nothing is.
func (f *Fleet) Facts() (facts []string) {
	if f.Probers > 0 {
		live, verb := f.Live(), "probe"
		if min(f.Probers, live) == 1 {
			verb = "probes"
		}
		facts = append(facts, fmt.Sprintf("%d of %s %s each upstream at its interval", min(f.Probers, live), count(live, "live member"), verb))
	}
	if f.ProbesAlone != "" {
		facts = append(facts, "this Caddy probes all upstreams at their intervals: "+f.ProbesAlone)
	}
	return facts
}

// NameOf returns the name of a member, with the beginning of its ID if another has that name.
func (f *Fleet) NameOf(m *Member) string {
	for i := range f.Members {
		if other := &f.Members[i]; other.ID != m.ID && other.Member == m.Member {
			return fmt.Sprintf("%s (%.8s)", m.Member, m.ID)
		}
	}
	return m.Member
}

// String says how a wait is.
func (w *Wait) String() string {
	switch {
	case w.Failed != "":
		return w.Failed
	case w.Done:
		return "all members are quiet"
	case w.Quiet:
		return "all live members are quiet"
	default:
		return fmt.Sprintf("%d pending, %d lost", len(w.Pending), len(w.Lost))
	}
}

// Left says what a member has still to do until it is quiet, empty if it is. It can be called
// on nil, for a member that says nothing of the upstream.
func (a *Ack) Left() string {
	switch {
	case a == nil || !a.Follows:
		return "does not follow the mode yet"
	case a.InFlight > 0:
		return fmt.Sprintf("%d in flight", a.InFlight)
	case a.Gets:
		return "still sends new requests, since no other upstream serves there"
	case !a.Quiet:
		return "nothing in flight, but the mode is new there"
	default:
		return ""
	}
}
