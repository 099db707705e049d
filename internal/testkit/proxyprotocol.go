// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"io"
	"net"
	"time"
)

// ProxyProtocol is a listener whose connections must begin with a PROXY protocol
// header, version 2. It closes those that do not.
type ProxyProtocol struct {
	net.Listener
	Missing *Failures
}

// Accept returns the next connection that begins with the header, without it.
func (l ProxyProtocol) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err := skipHeader(conn); err != nil {
			l.Missing.Add(err)
			conn.Close()
			continue
		}
		return conn, nil
	}
}

// skipHeader reads a PROXY protocol header, version 2.
func skipHeader(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(Patience))
	defer conn.SetReadDeadline(time.Time{})
	head := make([]byte, 16)
	if _, err := io.ReadFull(conn, head); err != nil {
		return fmt.Errorf("reading the header: %v", err)
	}
	if signature := "\r\n\r\n\x00\r\nQUIT\n"; string(head[:12]) != signature || head[12]>>4 != 2 {
		return fmt.Errorf("not a PROXY protocol header: %q", head)
	}
	_, err := io.CopyN(io.Discard, conn, int64(head[14])<<8|int64(head[15]))
	return err
}
