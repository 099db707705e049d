// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// NameServer is a DNS server whose answers a test changes while it runs.
type NameServer struct {
	conn net.PacketConn // answers queries

	mu      sync.Mutex
	answers map[string]Records // by name
	asked   map[string]int
}

// Records are what the server answers for one name. Without records the answer is empty.
type Records struct {
	RCode dnsmessage.RCode
	A     []string // addresses
}

// StartNameServer runs one until the test ends.
func StartNameServer(tb testing.TB) *NameServer {
	tb.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	n := &NameServer{conn: conn, answers: make(map[string]Records), asked: make(map[string]int)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if reply, err := n.reply(buffer[:size]); err == nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	tb.Cleanup(func() {
		conn.Close()
		<-done
	})
	return n
}

func (n *NameServer) reply(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(q.Name.String())
	n.mu.Lock()
	n.asked[name]++
	answer, known := n.answers[name]
	n.mu.Unlock()
	if !known {
		answer.RCode = dnsmessage.RCodeNameError
	}

	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: header.ID, Response: true, Authoritative: true,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true, RCode: answer.RCode,
	})
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	errs := []error{b.StartQuestions(), b.Question(q), b.StartAnswers()}
	switch q.Type {
	case dnsmessage.TypeA:
		for _, ip := range answer.A {
			errs = append(errs, b.AResource(head, dnsmessage.AResource{A: [4]byte(net.ParseIP(ip).To4())}))
		}
	default: // of the others, an AAAA record for one, there is none
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return b.Finish()
}

// Addr is where it listens.
func (n *NameServer) Addr() string { return n.conn.LocalAddr().String() }

// Set changes what is said about a name from now on.
func (n *NameServer) Set(name string, answer Records) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[name] = answer
}

// queries returns how often a name was asked for.
func (n *NameServer) queries(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[name]
}

// AwaitQuery returns when Caddy has asked for the name anew, so that every later
// request sees what is said about it now. There must be no other client.
func (n *NameServer) AwaitQuery(tb testing.TB, name string, client *http.Client, url string) {
	tb.Helper()
	before := n.queries(name)
	Eventually(tb, Patience, "Caddy asks for "+name, func() bool {
		Ask(client, url)
		return n.queries(name) > before
	})
}

var names atomic.Int64

// NewName returns a name that no other call did: Caddy caches what it learns of
// names for the whole process.
func NewName() string { return fmt.Sprintf("app%d.test.", names.Add(1)) }

// Source is a source of Caddy, for a Caddyfile, that asks for the addresses of a name.
func (n *NameServer) Source(name string, port int) string {
	return fmt.Sprintf("a %s %d {\nresolvers %s\nrefresh 50ms\nversions ipv4\n}", name, port, n.conn.LocalAddr())
}
