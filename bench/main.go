// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Bench measures this plugin beside its peers, in one run on one machine, because only
// ratios are comparable with those of other machines. It needs Linux and installed peers;
// those that are missing are named and left out.
//
//	go -C bench run .
//
// It prints tables, and writes them to bench/results: as Markdown, as JSON with what each
// round gave, and as charts, with the configs of all peers. At the end it says which
// budgets of this project are held, missed, or undecided because of noise. Options like
// -only faults,closed measure some parts, and -rounds 1 -duration 2s measure them shortly:
//
//	go -C bench run . -only faults -rounds 1 -duration 2s -results "$(mktemp -d)"
//
// With -quick, on two cores, the parts take about 170, 160, 90, 85, 80, 70, 80, 30, 15, 40,
// 90, 50 and 50 seconds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// bench is the state that all measurements share.
type bench struct {
	scratch  string
	caddy    string // Caddy with this plugin
	stock    string // Caddy without it
	peers    []peer
	settle   time.Duration
	duration time.Duration
	rounds   int
	rate     int
	targets  []int
	report
}

// defaultResults is the folder of the reports.
const defaultResults = "results"

// part is one measurement.
type part struct {
	name    string
	measure func(*bench, context.Context) error
}

// parts are the measurements, in the order in which they run.
var parts = []part{
	{"requests", (*bench).requests},
	{"faults", (*bench).faults},
	{"smallest", (*bench).smallest},
	{"closed", (*bench).closed},
	{"posts", (*bench).posts},
	{"overload", (*bench).overload},
	{"restarts", (*bench).restarts},
	{"spurious", (*bench).spurious},
	{"weights", (*bench).weights},
	{"reloads", (*bench).reloads},
	{"probes", (*bench).probes},
	{"picks", (*bench).picks},
	{"limits", (*bench).limits},
}

// choose returns the parts of a list of names, in their order.
func choose(list string, names []string) ([]part, error) {
	wanted := strings.Split(list, ",")
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("-only takes %s; got '%s'", strings.Join(names, ","), name)
		}
	}
	return slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return !slices.Contains(wanted, p.name) }), nil
}

func main() {
	log.SetFlags(0)
	if addresses := os.Getenv(upstreamVariable); addresses != "" {
		log.Fatal(serveUpstream(strings.Split(addresses, ","), os.Getenv(controlVariable), os.Getenv(listenVariable)))
	}
	names := make([]string, 0, len(parts))
	for _, p := range parts {
		names = append(names, p.name)
	}
	quick := flag.Bool("quick", false, "measure shorter, in about 15 minutes on two cores")
	only := flag.String("only", strings.Join(names, ","), "which parts to measure")
	duration := flag.Duration("duration", 20*time.Second, "how long each measurement lasts")
	settle := flag.Duration("settle", 15*time.Second, "how long a checker runs before it is measured")
	rounds := flag.Int("rounds", 3, "how often each is repeated, by turns; medians and sums are shown")
	rate := flag.Int("rate", 1000, "requests a second")
	targets := flag.String("targets", "1000,5000", "how many targets are probed, one after the other")
	strict := flag.Bool("strict", false, "fail if a budget is missed that is not one of speed")
	results := flag.String("results", defaultResults, "the folder to write to")
	flag.Parse()
	if *quick {
		*duration, *settle, *rounds, *targets = 4*time.Second, 5*time.Second, 2, "1000"
	}
	b := bench{settle: *settle, duration: *duration, rounds: *rounds, rate: *rate}
	for text := range strings.SplitSeq(*targets, ",") {
		size, err := strconv.Atoi(text)
		if err != nil || size <= few || size > maxTargets {
			log.Fatalf("-targets takes numbers from %d to %d, like 1000,5000; got '%s'", few+1, maxTargets, text)
		}
		b.targets = append(b.targets, size)
	}
	chosen, err := choose(*only, names)
	if err != nil {
		log.Fatal(err)
	}
	if *results == defaultResults && len(chosen) < len(parts) {
		log.Fatalf("-only needs -results <folder>: %s is for reports that have all parts", defaultResults)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err = b.measureAll(ctx, chosen, *results)
	if *strict {
		err = errors.Join(err, b.broken())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // there is nothing left to do
	}
}

// measureAll runs measurements one after the other, and writes the results. A
// measurement that fails does not affect the others.
func (b *bench) measureAll(ctx context.Context, chosen []part, results string) (err error) {
	began, before := time.Now(), load()
	if b.scratch, err = os.MkdirTemp("", "alive-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.scratch)
	b.caddy, b.stock = filepath.Join(b.scratch, "caddy-alive"), filepath.Join(b.scratch, "caddy")
	if err := errors.Join(buildCaddy(ctx, b.caddy, "./cmd/caddy"), buildCaddy(ctx, b.stock, "github.com/caddyserver/caddy/v2/cmd/caddy")); err != nil {
		return err
	}
	if b.Environment, err = look(ctx, b.caddy, began); err != nil {
		return err
	}
	b.Environment.Load = before
	var missing []string
	b.peers, missing = findPeers(b.caddy, b.stock)
	b.describe()
	for _, name := range missing {
		b.note("%s is not installed and is left out.", name)
	}
	var failed error
	for _, p := range chosen {
		began := time.Now()
		if err := p.measure(b, ctx); ctx.Err() != nil {
			return ctx.Err() // an interrupted run writes no report
		} else if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
			b.note("**The part %s failed.** Its results are incomplete.", p.name)
		}
		b.show()
		fmt.Fprintf(os.Stderr, "(%s took %s)\n", p.name, time.Since(began).Round(time.Second))
	}
	b.Environment.Took = time.Since(began).Round(time.Second).String()
	return errors.Join(failed, b.write(results))
}
