// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package e2e

import "testing"

func TestSeveralHosts(t *testing.T) { skip(t, "only Linux has network namespaces") }
