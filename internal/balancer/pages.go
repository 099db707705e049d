// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"bytes"
	"compress/gzip"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/page"
)

// maxPages is how many pages are kept of a listing. Clients choose the filters, so there can be
// any number.
const maxPages = 32

// Page is the status page of a listing with what a filter wants, plain and compressed.
type Page struct{ Plain, Gzip []byte }

// Page returns the page of a site. It is rendered once for all that ask for it with the same
// filter.
func (l *Listing) Page(site page.Site, f page.Filter) (*Page, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := f.URL()
	if p := l.pages[key]; p != nil {
		return p, nil
	}
	began := time.Now()
	plain, err := page.Render(page.Data{Site: site, Rows: l.rows, Pools: l.pools, At: l.at}, f)
	if err != nil {
		return nil, err
	}
	p := &Page{plain, compressed(plain)}
	l.took.Add(int64(time.Since(began)))
	if len(l.pages) < maxPages {
		if l.pages == nil {
			l.pages = make(map[string]*Page)
		}
		l.pages[key] = p
	}
	return p, nil
}

// compressed returns text in the format of gzip.
func compressed(text []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(text) // a buffer takes everything
	_ = w.Close()
	return out.Bytes()
}
