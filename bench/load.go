// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// result is one request of the load.
type result struct {
	due     time.Time     // when it was to be sent
	latency time.Duration // from then on, so that a delay of the sender is included
	status  int           // 0 if there was no answer
	from    string        // the upstream that answered
	again   bool          // the client sent it twice, because a kept connection ended without an answer
	dropped bool          // a new connection ended without an answer
}

func (r result) ok() bool { return r.status == http.StatusOK }

// attack sends a number of requests a second for a time, independent of their answers:
// an open loop. The first is due after one period. It returns the results in the order
// in which the requests were due.
func attack(ctx context.Context, url string, rate int, during time.Duration) []result {
	transport := &http.Transport{MaxIdleConnsPerHost: 10000}
	defer transport.CloseIdleConnections()
	attacker := vegeta.NewAttacker(vegeta.Client(&http.Client{Timeout: 30 * time.Second, Transport: attentive{transport}}), vegeta.Workers(64), vegeta.MaxWorkers(8000))
	stopped := context.AfterFunc(ctx, func() { attacker.Stop() })
	defer stopped()
	every := time.Second / time.Duration(rate)
	began := time.Now()
	results := make([]result, 0, int(during/every)+1)
	for r := range attacker.Attack(vegeta.NewStaticTargeter(vegeta.Target{Method: http.MethodGet, URL: url}), vegeta.Rate{Freq: rate, Per: time.Second}, during, "") {
		due := began.Add(time.Duration(r.Seq+1) * every)
		if r.Timestamp.Before(due) {
			due = r.Timestamp
		}
		results = append(results, result{due, r.Timestamp.Add(r.Latency).Sub(due), int(r.Code), string(r.Body), r.Headers.Get(againHeader) != "", r.Code == 0 && isDrop(r.Error)})
	}
	return inOrder(results)
}

// ask sends a request, and returns its result.
func ask(ctx context.Context, client *http.Client, due time.Time, method, url string, header http.Header) result {
	r := result{due: due}
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("order=1")
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return r
	}
	maps.Copy(request.Header, header)
	response, err := client.Do(request)
	if err == nil {
		var text []byte
		if text, err = io.ReadAll(response.Body); err == nil {
			r.status, r.from, r.again = response.StatusCode, string(text), response.Header.Get(againHeader) != ""
		}
		_ = response.Body.Close()
	}
	r.latency = time.Since(due)
	return r
}

// press sends requests by some clients, each of which sends its next one after an answer
// and a rest: a closed loop. It ends when more, which is told how many were sent before,
// returns false. It returns the results in the order in which the requests were sent.
func press(ctx context.Context, method, url string, clients int, rest time.Duration, more func(sent int) bool) []result {
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Timeout: 30 * time.Second, Transport: attentive{transport}}
	var sent atomic.Int64
	each := make([][]result, clients)
	var asking sync.WaitGroup
	for i := range each {
		asking.Go(func() {
			for ctx.Err() == nil && more(int(sent.Add(1))-1) {
				each[i] = append(each[i], ask(ctx, client, time.Now(), method, url, nil))
				if rest > 0 {
					_ = pause(ctx, rest)
				}
			}
		})
	}
	asking.Wait()
	return inOrder(slices.Concat(each...))
}

// arrival is a request of a plan.
type arrival struct {
	after time.Duration // the start
	work  time.Duration // of the upstream
}

// play sends the requests of a plan at their times, independent of their answers.
func play(ctx context.Context, url string, plan []arrival) []result {
	transport := &http.Transport{MaxIdleConnsPerHost: 10000}
	defer transport.CloseIdleConnections()
	client := &http.Client{Timeout: 30 * time.Second, Transport: attentive{transport}}
	began := time.Now()
	results := make([]result, len(plan))
	var asking sync.WaitGroup
	for i, a := range plan {
		due := began.Add(a.after)
		if pause(ctx, time.Until(due)) != nil {
			break
		}
		asking.Go(func() {
			results[i] = ask(ctx, client, due, http.MethodGet, url, http.Header{workHeader: {strconv.FormatInt(a.work.Microseconds(), 10)}})
		})
	}
	asking.Wait()
	return inOrder(results)
}

// inOrder sorts results by the time at which they were due.
func inOrder(results []result) []result {
	slices.SortFunc(results, func(a, b result) int { return a.due.Compare(b.due) })
	return results
}

// againHeader is added to the answers of requests that were sent twice.
const againHeader = "Bench-Again"

// attentive detects that Go's transport sends a request again by itself.
type attentive struct{ *http.Transport }

// RoundTrip adds a header to the answer in this case.
func (a attentive) RoundTrip(r *http.Request) (*http.Response, error) {
	connections := 0
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connections++ }}
	response, err := a.Transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if err == nil && connections > 1 {
		response.Header.Set(againHeader, "1")
	}
	return response, err
}

// failures counts the results without an answer, or with an error.
func failures(results []result) (n int) {
	for _, r := range results {
		if !r.ok() {
			n++
		}
	}
	return n
}

// isDrop reports whether the error of a request says that its connection ended. Go's client
// sends a request again by itself if the connection was a kept one, so it was new.
func isDrop(problem string) bool {
	return strings.HasSuffix(problem, ": EOF") || strings.HasSuffix(problem, syscall.ECONNRESET.Error())
}

// drops counts the results of requests whose new connection ended without an answer.
func drops(results []result) (n int) {
	for _, r := range results {
		if r.dropped {
			n++
		}
	}
	return n
}

// repeats counts the results of requests that the client sent again by itself, and that
// did not fail.
func repeats(results []result) (n int) {
	for _, r := range results {
		if r.ok() && r.again {
			n++
		}
	}
	return n
}

// percentile returns the latency that this percentage of the requests did not exceed.
func percentile(results []result, percent float64) time.Duration {
	latencies := make([]time.Duration, 0, len(results))
	for _, r := range results {
		latencies = append(latencies, r.latency)
	}
	if len(latencies) == 0 {
		return 0
	}
	slices.Sort(latencies)
	return latencies[min(len(latencies)-1, int(percent/100*float64(len(latencies))))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
