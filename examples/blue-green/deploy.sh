#!/bin/sh
# Deploys one upstream after the other, without a failed request. Give it the command
# that replaces what runs at an address, which is its last argument:
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
