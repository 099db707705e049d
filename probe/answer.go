// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/redact"
)

// lingering is how long to wait for the rest of an answer that is already judged. If it
// ends within that time, the connection can be used again and the upstream sees no
// error.
const lingering = 20 * time.Millisecond

// expectedHeader is a header field that an answer must have.
type expectedHeader struct {
	name  string
	value *pattern
}

// provisionAnswer compiles what is expected.
func (h *HTTP) provisionAnswer() (err error) {
	if len(h.Status) == 0 {
		h.Status = []string{"2xx"}
	}
	if h.status, err = h.provisionStatus("status", h.Status); err != nil {
		return err
	}
	if h.draining, err = h.provisionStatus("drain_status", h.DrainStatus); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(h.ExpectHeader)) {
		if err := checkFieldName(name); err != nil {
			return fmt.Errorf("expect_header: %v", err)
		}
		h.secrets.Learn(h.ExpectHeader[name])
		value, err := resolvePattern("expect_header "+name, h.ExpectHeader[name])
		if err != nil {
			return err
		}
		h.header = append(h.header, expectedHeader{name: http.CanonicalHeaderKey(name), value: value})
	}
	if h.ExpectBody != "" {
		h.secrets.Learn(h.ExpectBody)
		if h.body, err = resolvePattern("expect_body", h.ExpectBody); err != nil {
			return err
		}
	}
	if h.Expression != "" {
		h.secrets.Learn(h.Expression)
		text, err := resolveText("expression", h.Expression)
		if err != nil {
			return err
		}
		if h.expression, err = compileExpression(h.Expression, text); err != nil {
			return err
		}
	}
	if err := h.checkBody(); err != nil {
		return err
	}
	if h.MaxSize == 0 {
		h.MaxSize = defaultMaxSize
	}
	return checkMaxSize(h.MaxSize)
}

// provisionStatus resolves placeholders in a list of codes and parses it. Errors show
// the list as written.
func (h *HTTP) provisionStatus(option string, list []string) (ranges []limits.StatusRange, err error) {
	for _, written := range list {
		h.secrets.Learn(written)
		text, err := resolve(option, written)
		if err != nil {
			return nil, err
		}
		r, err := limits.ParseStatus(option, text)
		if err != nil {
			if redact.HasPlaceholder(written) { // the same error, without the value of a placeholder
				_, err = limits.ParseStatus(option, written)
			}
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// checkBody rejects a check that could never pass.
func (h *HTTP) checkBody() error {
	if h.Method != http.MethodHead {
		return nil
	}
	if h.ExpectBody != "" {
		return fmt.Errorf("expect_body: %w", errHEAD)
	}
	if h.expression != nil && h.expression.readsBody {
		return fmt.Errorf("expression: %w", errHEAD)
	}
	return nil
}

func checkMaxSize(size int64) error {
	if size < 1 || size > maxMaxSize {
		return errors.New("max_size must be a " + sizeRange)
	}
	return nil
}

// probe sends the request and judges the answer. The text of an error may contain the
// value of a placeholder.
func (h *HTTP) probe(ctx context.Context, up Upstream) error {
	began := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := h.send(ctx, up)
	if err != nil {
		return err
	}
	defer resp.Body.Close()

	if matches(h.draining, resp.StatusCode) {
		h.leave(resp.Body, cancel)
		return fmt.Errorf("status %d: %w", resp.StatusCode, ErrDraining)
	}
	if !matches(h.status, resp.StatusCode) {
		return h.unwantedStatus(resp)
	}
	for _, want := range h.header {
		if err := h.checkHeader(want, resp.Header.Values(want.name)); err != nil {
			return err
		}
	}
	if !h.looksAtBody() {
		if err := h.evaluate(ctx, resp, nil, began); err != nil {
			return err
		}
		h.leave(resp.Body, cancel)
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, h.MaxSize))
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	// a transport may ignore the context, and the checks below can take long
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.body != nil && !h.body.Match(body) {
		return h.unwantedBody(resp, body)
	}
	return h.evaluate(ctx, resp, body, began)
}

// looksAtBody reports whether the body of the answer is part of what is expected.
func (h *HTTP) looksAtBody() bool {
	return h.body != nil || h.expression != nil && h.expression.readsBody
}

// leave reads the rest of an answer that is already judged, for a short time only: an
// event stream, for example, does not end.
func (h *HTTP) leave(body io.Reader, cancel context.CancelFunc) {
	if body == http.NoBody {
		return
	}
	defer time.AfterFunc(lingering, cancel).Stop()
	_, _ = io.Copy(io.Discard, io.LimitReader(body, h.MaxSize))
}

// evaluate returns an error unless the expression is true. Without an expression there
// is none.
func (h *HTTP) evaluate(ctx context.Context, resp *http.Response, body []byte, began time.Time) error {
	if h.expression == nil {
		return ctx.Err()
	}
	err := h.expression.check(ctx, reply{
		status: resp.StatusCode, header: resp.Header, body: body, took: time.Since(began),
	})
	if err == nil || ctx.Err() != nil || !h.expression.readsBody || h.expression.secret {
		return err
	}
	return fmt.Errorf("%w; %s", err, h.got(resp, body, true))
}

// unwantedStatus returns the error of an answer whose status is not listed.
func (h *HTTP) unwantedStatus(resp *http.Response) error {
	text := fmt.Sprintf("status %d, want %s", resp.StatusCode, strings.Join(h.Status, " "))
	if location := resp.Header.Get("Location"); location != "" && resp.StatusCode/100 == 3 {
		text += "; Location " + quote(&h.secrets, []byte(withoutCredentials(location)))
	}
	return errors.New(text)
}

// withoutCredentials returns a URL without its user information.
func withoutCredentials(location string) string {
	u, err := url.Parse(location)
	switch {
	case err == nil && u.User == nil && u.Opaque == "":
		return location
	case err == nil && u.Opaque == "":
		u.User = url.User("xxxxx")
		return u.String()
	case !strings.Contains(location, "@"):
		return location
	default: // it cannot be told which part of it the credentials are
		_, rest, _ := strings.Cut(location, "@")
		return "xxxxx@" + rest
	}
}

// checkHeader returns an error unless one of the values of a field matches.
func (h *HTTP) checkHeader(want expectedHeader, values []string) error {
	switch {
	case slices.ContainsFunc(values, want.value.MatchString):
		return nil
	case len(values) == 0:
		return fmt.Errorf("header %s is missing, want '%s'", want.name, want.value)
	case want.value.secret: // the value that came may be secret, too
		return fmt.Errorf("header %s does not match '%s'", want.name, want.value)
	default:
		return fmt.Errorf("header %s is %s, want '%s'", want.name, quote(&h.secrets, []byte(values[0])), want.value)
	}
}

// unwantedBody returns the error of a body that does not match.
func (h *HTTP) unwantedBody(resp *http.Response, body []byte) error {
	where := ""
	if h.isCut(resp, body) {
		where = " in its first " + humanize.IBytes(uint64(h.MaxSize))
	}
	return fmt.Errorf("body does not match '%s'%s; %s", h.body, where, h.got(resp, body, !h.body.secret))
}

// isCut reports whether the body may continue after the part that was read.
func (h *HTTP) isCut(resp *http.Response, body []byte) bool {
	return int64(len(body)) == h.MaxSize && resp.ContentLength != h.MaxSize
}

// got describes a body: its size, its encoding and, if it may be shown, its beginning.
func (h *HTTP) got(resp *http.Response, body []byte, show bool) string {
	if len(body) == 0 {
		return "got an empty body"
	}
	text := "got " + inBytes(len(body))
	if h.isCut(resp, body) {
		text = "got more than " + inBytes(len(body))
	}
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" {
		text += ", Content-Encoding " + quote(&h.secrets, []byte(encoding))
	}
	if show {
		text += ": " + quote(&h.secrets, body)
	}
	return text
}

// inBytes returns a number of bytes in words.
func inBytes(n int) string {
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}
