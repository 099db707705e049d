// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package health

import "syscall"

// shortages are errors by which the operating system refuses something to this process
// itself: a descriptor, memory, a local port.
var shortages = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, errNoAddress}

// errNoAddress is that there is no local port left, or no local address at all.
const errNoAddress = syscall.EADDRNOTAVAIL
