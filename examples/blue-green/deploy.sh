#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Deploys one upstream after the other. Give it the command that replaces what runs at
# an address, which is its last argument, and that returns when the new one was started:
#
#	./deploy.sh ./replace
set -eu

if [ $# -eq 0 ]; then
	echo "usage: $0 <command> [<arguments>]" >&2
	exit 2
fi

deploying=
trap '[ -z "$deploying" ] || echo "$deploying stays in drain; once it is well: caddy alive ready $deploying" >&2' EXIT
trap 'exit 1' HUP INT TERM

for upstream in blue:8080 green:8080; do
	deploying=$upstream
	# if its requests do not end in time, nothing has been replaced yet
	caddy alive drain "$upstream" --wait 60s || {
		caddy alive ready "$upstream" && deploying=
		exit 1
	}
	"$@" "$upstream"
	# one that was down is up again after some checks in a row
	caddy alive check "$upstream" --wait 60s
	caddy alive ready "$upstream"
	deploying=
done
