// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

const (
	// watchInterval is how often status --watch asks.
	watchInterval = time.Second
	// oldAfter is the age from which a list is marked as old.
	oldAfter = 3 * time.Second
)

// watcher shows the upstreams again each second.
type watcher struct {
	*client
	filter      filter
	asJSON, all bool

	last    *listing  // the newest answer, nil before the first one
	at      time.Time // when it came
	problem error     // why what was asked later has no answer, nil if it has, or may still get one
	drawn   bool
}

// answered is what Caddy answered, or why not.
type answered struct {
	listing
	err error
}

// run shows the upstreams until the command is interrupted. Where the cursor can be moved, it goes
// on in place also while an answer is late, so that the age of what it shows is seen.
func (w *watcher) run(out io.Writer) error {
	answers := make(chan answered, 1)
	ask := func() {
		listed, err := askFor(w.client, w.filter)
		answers <- answered{listed, err}
	}
	go ask()
	waiting := true
	defer func() {
		if waiting {
			<-answers // soon, since the context has ended
		}
	}()
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		select {
		case <-w.cmd.Context().Done():
			return nil
		case a := <-answers:
			waiting = false
			if w.cmd.Context().Err() != nil {
				return nil
			}
			if a.err != nil && w.last == nil {
				return a.err
			}
			if w.problem = a.err; a.err == nil {
				w.last, w.at = &a.listing, time.Now()
			}
			if err := w.show(out, true); err != nil {
				return err
			}
		case <-ticker.C:
			if !waiting {
				waiting = true
				go ask()
			} else if err := w.show(out, false); err != nil {
				return err
			}
		}
	}
}

// show writes what is known now. Where it is not in place, it writes each answer once.
func (w *watcher) show(out io.Writer, isNew bool) error {
	s, now := screenOf(out), time.Now()
	var text []byte
	switch {
	case s.moves && !w.asJSON:
		if w.last == nil {
			return nil
		}
		text = w.frame(s, now)
	case !isNew:
		return nil
	case w.problem != nil:
		w.warn(w.problem.Error())
		return nil
	case w.asJSON:
		some, err := w.filter.json(w.last.rows, w.last.text)
		if err != nil {
			return err
		}
		text = printableJSON(some)
	default:
		var show bytes.Buffer
		w.report(s).write(&show)
		text = show.Bytes()
	}
	_, err := out.Write(text)
	return err
}

// report is the list as it was answered.
func (w *watcher) report(s screen) report {
	return report{screen: s, listing: *w.last, filter: w.filter, now: w.at, clock: clockCell(w.at)}
}

// clockCell shows a time of day with its zone.
func clockCell(at time.Time) string { return at.Format("15:04:05 MST") }

// frame returns the whole screen: the list, and above it a warning without which it would be
// taken for new. What is old has no colours.
func (w *watcher) frame(s screen, now time.Time) []byte {
	var show bytes.Buffer
	rest := s
	if age := now.Sub(w.at); w.problem != nil || age >= oldAfter {
		reason := fmt.Sprintf("Caddy at %s does not answer", w.address)
		if w.problem != nil {
			reason = w.problem.Error()
		}
		s.alarm(&show, fmt.Sprintf("this is how it was %s ago, at %s: %s", ageCell(age), clockCell(w.at), reason))
		rest.colours = false
	}
	r := w.report(rest)
	if !w.all {
		r.room = max(1, s.lines-1-bytes.Count(show.Bytes(), []byte("\n")))
	}
	r.write(&show)
	begin := home
	if !w.drawn {
		begin, w.drawn = clearScreen, true
	}
	return s.inPlace(begin, s.fit(show.Bytes()))
}
