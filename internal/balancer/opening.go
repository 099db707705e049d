// SPDX-License-Identifier: Apache-2.0

package balancer

// opening is an address that requests bring for the first time, until an answer has it.
// It is opened without a lock, because a check may call other modules, and once, even if
// many requests bring it.
type opening struct {
	dial string
	done chan struct{} // closed when ready is set
	opened
	err error

	ready bool // guarded by dynamic.mu; what opened and err have does not change any more
}

// openNew opens the addresses that are new, and waits for those that other requests open.
// It reports whether there were any. d.mu must be held, but is free meanwhile.
func openNew(d *dynamic, dials []string) bool {
	var own, others []*opening
	for _, dial := range dials {
		switch o := d.opening[dial]; {
		case o == nil && d.mayOpen(dial):
			o = &opening{dial: dial, done: make(chan struct{})}
			d.opening[dial] = o
			own = append(own, o)
		case o != nil && !o.ready:
			others = append(others, o)
		}
	}
	if len(own) == 0 && len(others) == 0 {
		return false
	}
	d.unlock()
	if len(own) > 0 {
		openAll(d, own)
	}
	for _, o := range others {
		<-o.done
	}
	d.mu.Lock()
	return true
}

// openAll opens addresses that openNew has noted.
func openAll(d *dynamic, own []*opening) {
	defer func() { // also if a check panics: other requests wait
		d.mu.Lock()
		for _, o := range own {
			o.ready = true
			close(o.done)
			if d.closed {
				d.drop(o)
			}
		}
		d.unlock()
	}()
	for _, o := range own {
		o.opened, o.err = d.balancer.open(o.dial)
	}
}
