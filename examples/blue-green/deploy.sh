#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Deploys one upstream after the other. The arguments are the command that replaces what
# runs at an address. It gets the address as its last argument, and returns when the new
# instance has started:
#
#	./deploy.sh ./replace
set -eu

if [ $# -eq 0 ]; then
	echo "usage: $0 <command> [<arguments>]" >&2
	exit 2
fi

deploying=
trap '[ -z "$deploying" ] || echo "$deploying stays in drain; when it works again, run: caddy alive ready $deploying" >&2' EXIT
trap 'exit 1' HUP INT TERM

for upstream in blue:8080 green:8080; do
	deploying=$upstream
	# nothing is replaced if its requests do not end in time
	caddy alive drain "$upstream" --wait 60s || {
		caddy alive ready "$upstream" && deploying=
		exit 1
	}
	"$@" "$upstream"
	# an upstream that was down needs several passes in a row
	caddy alive check "$upstream" --wait 60s
	caddy alive ready "$upstream"
	deploying=
done
