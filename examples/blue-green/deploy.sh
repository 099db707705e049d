#!/bin/sh
# Deploys one upstream after the other. Give it the command that replaces what runs at
# an address, which is its last argument. One check that passes is not yet "up" if the
# replacement took long enough to be noticed, so see that caddy alive status says up
# before the next one is stopped, or requests fail:
#
#	./deploy.sh ./replace
set -eu

for upstream in blue:8080 green:8080; do
	# if its requests do not end in time, nothing has been replaced yet
	caddy alive drain "$upstream" --wait 60s || {
		caddy alive ready "$upstream"
		exit 1
	}
	"$@" "$upstream"
	# not ready before it passes its check
	until caddy alive check "$upstream"; do
		sleep 1
	done
	caddy alive ready "$upstream"
done
