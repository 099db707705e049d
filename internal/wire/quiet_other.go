// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package wire

import "net"

// canPeek: without waiting, it cannot be found out whether an idle connection is open
// and has nothing to be read. So none is used twice.
const canPeek = false

// quiet is not asked.
func quiet(net.Conn) bool { return false }
