// SPDX-License-Identifier: Apache-2.0

package health

import "syscall"

// shortages are errors by which the operating system refuses something to this process
// itself: a descriptor, memory, a local port. The names that the package syscall has for
// them elsewhere are numbers of its own on Windows, which no call returns.
var shortages = []syscall.Errno{
	4,     // ERROR_TOO_MANY_OPEN_FILES
	8,     // ERROR_NOT_ENOUGH_MEMORY
	1450,  // ERROR_NO_SYSTEM_RESOURCES
	10024, // WSAEMFILE
	errNoAddress,
	10055, // WSAENOBUFS
}

// errNoAddress is WSAEADDRNOTAVAIL: there is no local port left, or no local address at all.
const errNoAddress syscall.Errno = 10049
