// SPDX-License-Identifier: Apache-2.0

// Bench measures this plugin beside its peers, in one run on one machine, for
// only ratios mean something elsewhere. It needs Linux, and what it compares with
// has to be installed; what is not is named and left out.
//
//	go -C bench run .
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"
)

func main() {
	log.SetFlags(0)
	duration := flag.Duration("duration", 20*time.Second, "how long each measurement lasts")
	rounds := flag.Int("rounds", 2, "how often each is repeated; medians are shown")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	scratch, err := os.MkdirTemp("", "alive-bench-")
	if err != nil {
		log.Fatal(err)
	}
	err = benchProbes(ctx, scratch, *duration, *rounds)
	if removeErr := os.RemoveAll(scratch); err == nil {
		err = removeErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
