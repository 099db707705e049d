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
	"strconv"
	"strings"
	"time"
)

// bench is what all measurements have in common.
type bench struct {
	scratch  string
	settle   time.Duration
	duration time.Duration
	rounds   int
}

func main() {
	log.SetFlags(0)
	duration := flag.Duration("duration", 20*time.Second, "how long each measurement lasts")
	settle := flag.Duration("settle", 15*time.Second, "how long a server runs before it is measured")
	rounds := flag.Int("rounds", 2, "how often each is repeated; medians are shown")
	targets := flag.String("targets", "1000,5000", "how many targets are probed, one table after the other")
	flag.Parse()
	var sizes []int
	for text := range strings.SplitSeq(*targets, ",") {
		size, err := strconv.Atoi(text)
		if err != nil || size <= few || size > maxTargets {
			log.Fatalf("-targets takes numbers from %d to %d, like 1000,5000; got '%s'", few+1, maxTargets, text)
		}
		sizes = append(sizes, size)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	scratch, err := os.MkdirTemp("", "alive-bench-")
	if err != nil {
		log.Fatal(err)
	}
	b := bench{scratch: scratch, settle: *settle, duration: *duration, rounds: *rounds}
	err = b.probes(ctx, sizes)
	if removeErr := os.RemoveAll(scratch); err == nil {
		err = removeErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
