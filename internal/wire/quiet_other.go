// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package wire

import "net"

// quiet reports whether an idle connection is open and has nothing to be read.
// Where that cannot be found out without waiting, connections are not used
// twice.
func quiet(net.Conn) bool { return false }
