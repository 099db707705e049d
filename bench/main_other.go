// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: this needs Linux: it reads /proc, and makes black holes of addresses of the loopback network")
	os.Exit(1)
}
