// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
)

// site is a proxy in front of three upstreams of its own.
type site struct {
	addresses []string
	upstreams []*upstream
	proxy     *proxy
	end       func() // ends the upstreams
}

// newSite runs the upstreams in a mode, and a proxy with so many retries, at addresses of a
// network of their own. Close must follow.
func (b *bench) newSite(ctx context.Context, p peer, network int, mode string, again retries) (s *site, err error) {
	s = &site{}
	if s.addresses, err = freeAddresses(ctx, network, 3); err != nil {
		return nil, err
	}
	if s.upstreams, s.end, err = startEach(ctx, b.scratch, s.addresses); err != nil {
		return nil, err
	}
	if mode != normal {
		for _, u := range s.upstreams {
			err = errors.Join(err, u.set(ctx, mode))
		}
	}
	if err == nil {
		s.proxy, err = p.run(ctx, b.scratch, balance{upstreams: s.addresses, retries: again})
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// close ends all of it.
func (s *site) close() error {
	defer s.end()
	return s.proxy.stop()
}
