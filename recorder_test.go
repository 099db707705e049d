// SPDX-License-Identifier: Apache-2.0

package alive

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

// recorder is a web server that remembers who came and what for.
type recorder struct {
	addr   string // a path if it is a unix socket
	stream net.Listener

	mu     sync.Mutex
	visits []*visit
	order  []string // the paths of all requests, as they came
}

// visit is one connection. Its fields are guarded by the recorder's mutex.
type visit struct {
	net.Conn
	recorder *recorder
	reader   *bufio.Reader
	once     sync.Once

	preface  string // the PROXY protocol header that it began with
	sni      string // the server name asked for
	secure   bool   // it began a TLS handshake
	requests []arrival
	closed   bool
}

// arrival is a request that has arrived.
type arrival struct {
	path, host, proto string
	client            string // the name in the client certificate
}

// visitKey is where a request has its visit.
type visitKey struct{}

// startRecorder runs one until the test ends: with TLS, given a config, and with
// every version of HTTP over TCP, unless the config says otherwise. Without a
// handler it answers its name, which is "a".
func startRecorder(tb testing.TB, network, address string, config *tls.Config, answer http.HandlerFunc) *recorder {
	tb.Helper()
	if address == "" {
		address = loopback(freePort(tb))
	}
	stream, err := net.Listen(network, address)
	if err != nil {
		tb.Fatal(err)
	}
	r := &recorder{addr: address, stream: stream}
	if answer == nil {
		answer = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }
	}
	server := &http.Server{
		ErrorLog:  discard,
		Protocols: new(http.Protocols),
		TLSConfig: config,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if secure, ok := conn.(*tls.Conn); ok {
				conn = secure.NetConn()
			}
			return context.WithValue(ctx, visitKey{}, conn)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			seen := arrival{path: req.URL.Path, host: req.Host, proto: req.Proto}
			if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
				seen.client = req.TLS.PeerCertificates[0].Subject.CommonName
			}
			v := req.Context().Value(visitKey{}).(*visit)
			r.mu.Lock()
			v.requests = append(v.requests, seen)
			r.order = append(r.order, seen.path)
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
			v := hello.Conn.(*visit)
			v.secure, v.sni = true, hello.ServerName
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
	r *recorder
}

func (l recording) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	v := &visit{Conn: conn, recorder: l.r, reader: bufio.NewReader(conn)}
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.r.visits = append(l.r.visits, v)
	return v, nil
}

// Read takes a PROXY protocol header off, if there is one.
func (v *visit) Read(p []byte) (int, error) {
	v.once.Do(func() {
		preface := readPreface(v.reader)
		v.recorder.mu.Lock()
		defer v.recorder.mu.Unlock()
		v.preface = preface
	})
	return v.reader.Read(p)
}

func (v *visit) Close() error {
	v.recorder.mu.Lock()
	v.closed = true
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

// all returns copies of the visits that pass the test.
func (r *recorder) all(test func(visit *visit) bool) (found []*visit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.visits {
		if test(v) {
			found = append(found, &visit{preface: v.preface, sni: v.sni, secure: v.secure, requests: slices.Clone(v.requests), closed: v.closed})
		}
	}
	return found
}

// asked returns the visits with a request for a path.
func (r *recorder) asked(path string) []*visit {
	return r.all(func(v *visit) bool {
		return slices.ContainsFunc(v.requests, func(a arrival) bool { return a.path == path })
	})
}

// arrivals returns the requests for a path.
func (r *recorder) arrivals(path string) (found []arrival) {
	for _, v := range r.asked(path) {
		for _, a := range v.requests {
			if a.path == path {
				found = append(found, a)
			}
		}
	}
	return found
}

// came returns the paths of all requests in the order in which they came.
func (r *recorder) came() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order)
}

// count returns how many requests for a path came.
func (r *recorder) count(path string) (n int) {
	for _, p := range r.came() {
		if p == path {
			n++
		}
	}
	return n
}

// mute returns the visits over with no request, with TLS or without.
func (r *recorder) mute(secure bool) []*visit {
	return r.all(func(v *visit) bool { return v.closed && v.secure == secure && len(v.requests) == 0 })
}
