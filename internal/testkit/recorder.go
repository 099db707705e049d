// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
)

// Recorder is a web server that records its connections and requests.
type Recorder struct {
	Addr     string // a path if it is a unix socket
	Listener net.Listener

	mu     sync.Mutex
	visits []*Visit
	order  []string // the paths of all requests, as they came
}

// Visit is one connection. Its fields are guarded by the recorder's mutex.
type Visit struct {
	net.Conn
	recorder *Recorder
	reader   *bufio.Reader
	once     sync.Once

	Preface    string // the PROXY protocol header that it began with
	ServerName string // the server name asked for
	Secure     bool   // it began a TLS handshake
	Requests   []Request
	Closed     bool
}

// Request is a request that has arrived.
type Request struct {
	Path, Host, Proto string
	Client            string // the name in the client certificate
}

// visitKey is where a request has its visit.
type visitKey struct{}

// StartRecorder runs one until the test ends: with TLS, given a config, and with
// every version of HTTP over TCP, unless the config says otherwise. Without a
// handler it answers its name, which is "a".
func StartRecorder(tb testing.TB, network, address string, config *tls.Config, answer http.HandlerFunc) *Recorder {
	tb.Helper()
	if address == "" {
		address = Loopback(FreePort(tb))
	}
	stream, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	r := &Recorder{Addr: address, Listener: stream}
	if answer == nil {
		answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }
	}
	server := &http.Server{
		ErrorLog:  Discard,
		Protocols: new(http.Protocols),
		TLSConfig: config,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if secure, ok := conn.(*tls.Conn); ok {
				conn = secure.NetConn()
			}
			return context.WithValue(ctx, visitKey{}, conn)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			seen := Request{Path: req.URL.Path, Host: req.Host, Proto: req.Proto}
			if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
				seen.Client = req.TLS.PeerCertificates[0].Subject.CommonName
			}
			v := req.Context().Value(visitKey{}).(*Visit)
			r.mu.Lock()
			v.Requests = append(v.Requests, seen)
			r.order = append(r.order, seen.Path)
			r.mu.Unlock()
			answer(w, req)
		}),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(config == nil || len(config.NextProtos) == 0 || slices.Contains(config.NextProtos, "h2"))
	server.Protocols.SetUnencryptedHTTP2(config == nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if config == nil {
			_ = server.Serve(recording{stream, r})
			return
		}
		server.TLSConfig = config.Clone()
		server.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			v := hello.Conn.(*Visit)
			v.Secure, v.ServerName = true, hello.ServerName
			return nil, nil
		}
		_ = server.ServeTLS(recording{stream, r}, "", "")
	}()
	tb.Cleanup(func() {
		server.Close()
		<-done
	})
	return r
}

// recording is the listener of a recorder.
type recording struct {
	net.Listener
	r *Recorder
}

// Accept returns the next connection and records it as a visit.
func (l recording) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	v := &Visit{Conn: conn, recorder: l.r, reader: bufio.NewReader(conn)}
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.r.visits = append(l.r.visits, v)
	return v, nil
}

// Read takes a PROXY protocol header off, if there is one.
func (v *Visit) Read(p []byte) (int, error) {
	v.once.Do(func() {
		preface := readPreface(v.reader)
		v.recorder.mu.Lock()
		defer v.recorder.mu.Unlock()
		v.Preface = preface
	})
	return v.reader.Read(p)
}

// Close closes the connection and records that it is closed.
func (v *Visit) Close() error {
	v.recorder.mu.Lock()
	v.Closed = true
	v.recorder.mu.Unlock()
	return v.Conn.Close()
}

// readPreface reads a PROXY protocol header of any version, and leaves all else.
func readPreface(reader *bufio.Reader) string {
	if start, _ := reader.Peek(6); string(start) == "PROXY " {
		line, _ := reader.ReadString('\n')
		return line
	}
	if start, _ := reader.Peek(1); string(start) != "\r" {
		return ""
	}
	start, err := reader.Peek(16)
	if err != nil {
		return string(start)
	}
	header := make([]byte, 16+int(start[14])<<8+int(start[15]))
	_, _ = io.ReadFull(reader, header)
	return string(header)
}

// Visits returns copies of the visits that pass the test.
func (r *Recorder) Visits(test func(visit *Visit) bool) (found []*Visit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.visits {
		if test(v) {
			found = append(found, &Visit{Preface: v.Preface, ServerName: v.ServerName, Secure: v.Secure, Requests: slices.Clone(v.Requests), Closed: v.Closed})
		}
	}
	return found
}

// CloseVisits closes the connections over which requests for a path came.
func (r *Recorder) CloseVisits(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.visits {
		if slices.ContainsFunc(v.Requests, func(a Request) bool { return a.Path == path }) {
			v.Conn.Close()
		}
	}
}

// VisitsFor returns the visits with a request for a path.
func (r *Recorder) VisitsFor(path string) []*Visit {
	return r.Visits(func(v *Visit) bool {
		return slices.ContainsFunc(v.Requests, func(a Request) bool { return a.Path == path })
	})
}

// Requests returns the requests for a path.
func (r *Recorder) Requests(path string) (found []Request) {
	for _, v := range r.VisitsFor(path) {
		for _, a := range v.Requests {
			if a.Path == path {
				found = append(found, a)
			}
		}
	}
	return found
}

// Paths returns the paths of all requests in the order in which they came.
func (r *Recorder) Paths() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order)
}

// Count returns how many requests for a path came.
func (r *Recorder) Count(path string) (n int) {
	for _, p := range r.Paths() {
		if p == path {
			n++
		}
	}
	return n
}

// Silent returns the visits over with no request, with TLS or without.
func (r *Recorder) Silent(secure bool) []*Visit {
	return r.Visits(func(v *Visit) bool { return v.Closed && v.Secure == secure && len(v.Requests) == 0 })
}
