// SPDX-License-Identifier: Apache-2.0

package view

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
	// Failed is why the wait cannot succeed, empty if it can.
	Failed string `json:"failed"`
	// Pending are the members that are not quiet yet, each with what it has still to do.
	Pending []string `json:"pending"`
	// Lost are the members that were not heard, each with since when.
	Lost []string `json:"lost"`
	// Bound is how many requests all members sent in the last minute because their clients
	// are bound to the upstream.
	Bound int `json:"bound"`
}
