// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// NameServer is a DNS server whose answers a test changes while it runs. It answers over
// UDP and TCP.
type NameServer struct {
	conn net.PacketConn // answers queries over UDP

	mu      sync.Mutex
	answers map[string]Records // by name
	asked   map[string]int
}

// Records are what the server answers for one name. Without records the answer is empty.
type Records struct {
	RCode  dnsmessage.RCode
	Silent bool     // there is no answer
	A      []string // addresses
	SRV    []string // names with a port, which is the priority and the weight, too
}

// longestDatagram is the longest answer over UDP that clients take. Longer ones are
// truncated.
const longestDatagram = 1232

// StartNameServer runs one until the test ends.
func StartNameServer(tb testing.TB) *NameServer {
	tb.Helper()
	conn, listener := listenBoth(tb)
	n := &NameServer{conn: conn, answers: make(map[string]Records), asked: make(map[string]int)}
	var serving sync.WaitGroup
	serving.Go(func() {
		buffer := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			reply, err := n.reply(buffer[:size], false)
			if err == nil && len(reply) > longestDatagram {
				reply, err = n.reply(buffer[:size], true)
			}
			if err == nil && reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	})
	serving.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { n.serve(client) })
		}
	})
	tb.Cleanup(func() {
		conn.Close()
		listener.Close()
		serving.Wait()
	})
	return n
}

// listenBoth listens on one port over UDP and TCP.
func listenBoth(tb testing.TB) (net.PacketConn, net.Listener) {
	tb.Helper()
	for range 20 { // the port of the one can be in use for the other
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		listener, err := net.Listen("tcp", conn.LocalAddr().String())
		if err == nil {
			return conn, listener
		}
		conn.Close()
	}
	tb.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

// serve answers the queries of a client over TCP.
func (n *NameServer) serve(client net.Conn) {
	defer client.Close()
	for {
		_ = client.SetDeadline(time.Now().Add(Patience))
		var size [2]byte
		if _, err := io.ReadFull(client, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(client, query); err != nil {
			return
		}
		reply, err := n.reply(query, false)
		if err != nil || reply == nil {
			return
		}
		if _, err := client.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// reply returns the answer to a query, nil if there is none. A truncated one has no
// records.
func (n *NameServer) reply(query []byte, truncated bool) ([]byte, error) {
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
	if !truncated { // else it is the same query
		n.asked[name]++
	}
	answer, known := n.answers[name]
	n.mu.Unlock()
	if !known {
		answer.RCode = dnsmessage.RCodeNameError
	}
	switch {
	case answer.Silent:
		return nil, nil
	case truncated:
		answer.A, answer.SRV = nil, nil
	}

	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: header.ID, Response: true, Authoritative: true,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true, RCode: answer.RCode,
		Truncated: truncated,
	})
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	errs := []error{b.StartQuestions(), b.Question(q), b.StartAnswers()}
	switch q.Type {
	case dnsmessage.TypeA:
		for _, ip := range answer.A {
			errs = append(errs, b.AResource(head, dnsmessage.AResource{A: [4]byte(net.ParseIP(ip).To4())}))
		}
	case dnsmessage.TypeSRV:
		for _, target := range answer.SRV {
			host, text, err := net.SplitHostPort(target)
			port, invalid := strconv.ParseUint(text, 10, 16)
			name, tooLong := dnsmessage.NewName(host)
			errs = append(errs, err, invalid, tooLong, b.SRVResource(head, dnsmessage.SRVResource{
				Priority: uint16(port), Weight: uint16(port), Port: uint16(port), Target: name,
			}))
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

// Queries returns how often a name was asked for.
func (n *NameServer) Queries(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[name]
}

// AwaitQuery returns when Caddy has asked for the name anew, so that every later
// request sees what is said about it now. There must be no other client.
func (n *NameServer) AwaitQuery(tb testing.TB, name string, client *http.Client, url string) {
	tb.Helper()
	before := n.Queries(name)
	Eventually(tb, Patience, "Caddy asks for "+name, func() bool {
		Ask(client, url)
		return n.Queries(name) > before
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

// ServiceSource is a source of Caddy, for a Caddyfile, that asks for the servers of a
// service: the names and ports of its SRV records.
func (n *NameServer) ServiceSource(name string) string {
	return fmt.Sprintf("srv %s {\nresolvers %s\nrefresh 50ms\n}", name, n.conn.LocalAddr())
}
