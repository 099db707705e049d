// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"strings"
	"testing"
	"time"
)

// say returns the text of an error, and "" if there is none.
func say(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// sayOf returns the text of the error of a function that has a value, too.
func sayOf[T any](_ T, err error) string { return say(err) }

// Every value in its range is accepted. Every other one is answered with the option, its
// range and the value.
func TestLimits_ErrorsHaveOptionRangeAndValue(t *testing.T) {
	t.Parallel()
	const (
		unit    = "; a number without a unit is in nanoseconds in JSON: write "
		hold    = "hold must be off or a duration above 0, like 2s; got "
		window  = "slow_start: window must be a duration from 10ms to 24h, like 30s; got "
		sync    = "sync_interval must be a duration from 100ms to 24h, like 2s; got "
		percent = "jitter must be a percentage from 0% to 100%, like 10%; got "
		count   = "fails must be a whole number of at least 1; got "
		weight  = "weight must be a whole number from 0 to 256"
		name    = "name must be one line of 200 bytes at most"
		wait    = "wait must be a duration from 1s to 24h, like 60s; got "
		fleet   = "fleet must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got "
		member  = "member must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got "
		port    = "port must be a whole number from 1 to 65535, or such a number with a + before it that is added to the port of each upstream, like 8081 or +1000; got "
		version = "proxy_protocol must be off, v1 or v2; got "
	)
	interval := func(value time.Duration) string { return say(Duration("interval", value, MinInterval, MaxDuration)) }
	parseInterval := func(text string) string {
		return sayOf(ParseDuration("interval", text, "a duration above 0, like 5s", MinInterval, MaxDuration))
	}
	for _, test := range []struct{ call, got, want string }{
		{"Duration of the shortest", interval(MinInterval), ""},
		{"Duration of the longest", interval(MaxDuration), ""},
		{"Duration below 0", interval(-1), "interval must not be negative"},
		{"Duration too short", interval(9 * time.Millisecond), "interval must be at least 10ms; got 9ms"},
		{"Duration of seconds without a unit", interval(5), "interval must be at least 10ms; got 5ns" + unit + `"5s"`},
		{"Duration of milliseconds without a unit", interval(5000), "interval must be at least 10ms; got 5µs" + unit + `"5000ms"`},
		{"Duration too long", interval(MaxDuration + 1), "interval must not be longer than 24h"},

		{"ParseDuration of the shortest", parseInterval("10ms"), ""},
		{"ParseDuration of the longest", parseInterval("1d"), ""},
		{"ParseDuration of 0", parseInterval("0s"), "interval must be a duration above 0, like 5s; got '0s'"},
		{"ParseDuration of a text", parseInterval("soon"), "interval must be a duration above 0, like 5s; got 'soon'"},
		{"ParseDuration too short", parseInterval("9ms"), "interval must be at least 10ms; got '9ms'"},
		{"ParseDuration too long", parseInterval("25h"), "interval must not be longer than 24h"},

		{"Hold of nothing", say(Hold(0)), ""},
		{"Hold of the shortest", say(Hold(MinHold)), ""},
		{"Hold below 0", say(Hold(-1)), "hold must not be negative; 0 holds no request"},
		{"Hold too short", say(Hold(5)), "hold must be at least 1ms; got 5ns" + unit + `"5s"`},
		{"ParseHold of off", sayOf(ParseHold("off")), ""},
		{"ParseHold of days", sayOf(ParseHold("3d")), ""},
		{"ParseHold of 0", sayOf(ParseHold("0")), hold + "'0'"},
		{"ParseHold too short", sayOf(ParseHold("1us")), "hold must be at least 1ms; got '1us'"},

		{"RampWindow of the shortest", say(RampWindow(MinRampWindow)), ""},
		{"RampWindow of the longest", say(RampWindow(MaxDuration)), ""},
		{"RampWindow of nothing", say(RampWindow(0)), window + "'0s'"},
		{"RampWindow without a unit", say(RampWindow(30)), window + "'30ns'" + unit + `"30s"`},
		{"RampWindow too long", say(RampWindow(MaxDuration + 1)), window + "'24h0m0.000000001s'"},
		{"ParseRampWindow of seconds", sayOf(ParseRampWindow("30s")), ""},
		{"ParseRampWindow of a text", sayOf(ParseRampWindow("soon")), window + "'soon'"},
		{"ParseRampWindow below 0", sayOf(ParseRampWindow("-1s")), window + "'-1s'"},
		{"ParseRampWindow too short", sayOf(ParseRampWindow("9ms")), window + "'9ms'"},
		{"ParseRampWindow too long", sayOf(ParseRampWindow("25h")), window + "'25h'"},

		{"SyncInterval of the shortest", say(SyncInterval(MinSyncInterval)), ""},
		{"SyncInterval of the default", say(SyncInterval(DefaultSyncInterval)), ""},
		{"SyncInterval without a unit", say(SyncInterval(5)), sync + "'5ns'" + unit + `"5s"`},
		{"SyncInterval too long", say(SyncInterval(25 * time.Hour)), sync + "'25h0m0s'"},
		{"ParseSyncInterval of seconds", sayOf(ParseSyncInterval("2s")), ""},
		{"ParseSyncInterval of a text", sayOf(ParseSyncInterval("soon")), sync + "'soon'"},
		{"ParseSyncInterval too short", sayOf(ParseSyncInterval("1ms")), sync + "'1ms'"},

		{"Percent of nothing", sayOf(Percent("jitter", "0%")), ""},
		{"Percent of all", sayOf(Percent("jitter", "100%")), ""},
		{"Percent without a sign", sayOf(Percent("jitter", "10")), percent + "'10'"},
		{"Percent of more than all", sayOf(Percent("jitter", "100.1%")), percent + "'100.1%'"},
		{"Percent of no number", sayOf(Percent("jitter", "NaN%")), percent + "'NaN%'"},

		{"Count of the default", say(Count("fails", 0)), ""},
		{"Count below 0", say(Count("fails", -1)), "fails must not be negative"},
		{"ParseCount of 1", sayOf(ParseCount("fails", "1")), ""},
		{"ParseCount of 0", sayOf(ParseCount("fails", "0")), count + "'0'"},
		{"ParseCount of a fraction", sayOf(ParseCount("fails", "1.5")), count + "'1.5'"},

		{"ParseWeight of 0", sayOf(ParseWeight("0", "")), ""},
		{"ParseWeight of the largest", sayOf(ParseWeight("256", "")), ""},
		{"ParseWeight below 0", sayOf(ParseWeight("-1", "")), weight + "; got '-1'"},
		{"ParseWeight too large", sayOf(ParseWeight("257", "or null")), weight + ", or null; got '257'"},
		{"ParseWeight of a text", sayOf(ParseWeight("many", "or reset")), weight + ", or reset; got 'many'"},
		{"ErrWeight", say(ErrWeight("{env.W}", "also with its placeholders replaced")), weight + ", also with its placeholders replaced; got '{env.W}'"},

		{"Name of nothing", say(Name("")), ""},
		{"Name of the longest", say(Name(strings.Repeat("x", MaxName))), ""},
		{"Name too long", say(Name(strings.Repeat("x", MaxName+1))), name},
		{"Name of two lines", say(Name("a\nb")), name},
		{"Name of no text", say(Name("\xff")), name},
		{"Fleet", say(Fleet("shops-1.eu_west")), ""},
		{"Fleet of nothing", say(Fleet("")), fleet + "''"},
		{"Fleet with a slash", say(Fleet("a/b")), fleet + "'a/b'"},
		{"Member", say(Member("edge-7.example.com")), ""},
		{"Member with a space", say(Member("edge 7")), member + "'edge 7'"},
		{"Member too long", say(Member(strings.Repeat("x", 65))), member + "'" + strings.Repeat("x", 65) + "'"},
		{"Wait of the shortest", say(Wait(MinWait)), ""},
		{"Wait of the longest", say(Wait(MaxDuration)), ""},
		{"Wait too short", say(Wait(MinWait - 1)), wait + "'999.999999ms'"},
		{"Wait too long", say(Wait(25 * time.Hour)), wait + "'25h0m0s'"},
		{"ParseWait of the longest", sayOf(ParseWait("1d")), ""},
		{"ParseWait of a number", sayOf(ParseWait("60")), wait + "'60'"},
		{"ParseWait below 0", sayOf(ParseWait("-60s")), wait + "'-60s'"},
		{"Fleet too long", say(Fleet(strings.Repeat("x", 65))), fleet + "'" + strings.Repeat("x", 65) + "'"},

		{"Port of the first", sayOfPort("1"), ""},
		{"Port of the last", sayOfPort("65535"), ""},
		{"Port of 0", sayOfPort("0"), port + "'0'"},
		{"Port too large", sayOfPort("65536"), port + "'65536'"},
		{"Port that is added", sayOfPort("+65535"), ""},
		{"Port of 0 that is added", sayOfPort("+0"), port + "'+0'"},
		{"Port with two signs", sayOfPort("++1"), port + "'++1'"},
		{"Port that is subtracted", sayOfPort("-1"), port + "'-1'"},
		{"ProxyProtocol off", say(ProxyProtocol("off")), ""},
		{"ProxyProtocol v1", say(ProxyProtocol("v1")), ""},
		{"ProxyProtocol v2", say(ProxyProtocol("v2")), ""},
		{"ProxyProtocol v3", say(ProxyProtocol("v3")), version + "'v3'"},
		{"ProxyProtocol of nothing", say(ProxyProtocol("")), version + "''"},
	} {
		if test.got != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.call, test.got, test.want)
		}
	}
}

// What is read is the value, in the unit that callers use.
func TestLimits_ValuesAreRead(t *testing.T) {
	t.Parallel()
	interval, _ := ParseDuration("interval", "1d", "", MinInterval, MaxDuration)
	hold, _ := ParseHold("2s")
	off, _ := ParseHold("off")
	window, _ := ParseRampWindow("30s")
	sync, _ := ParseSyncInterval("2s")
	if interval != MaxDuration || hold != 2*time.Second || off != 0 || window != 30*time.Second || sync != 2*time.Second {
		t.Errorf("durations: got %s, %s, %s, %s and %s, want 24h0m0s, 2s, 0s, 30s and 2s", interval, hold, off, window, sync)
	}
	timeout, _ := ParseQueueTimeout("10s")
	age, _ := ParseMaxAge("30d")
	if timeout != 10*time.Second || age != 720*time.Hour {
		t.Errorf("durations: got %s and %s, want 10s and 720h0m0s", timeout, age)
	}
	if percent, _ := Percent("jitter", "12.5%"); percent != 12.5 {
		t.Errorf("percentage: got %v, want 12.5", percent)
	}
	limit, _ := ParseLimit("20")
	length, _ := ParseQueueLength("500")
	if limit != 20 || length != 500 {
		t.Errorf("numbers: got %d and %d, want 20 and 500", limit, length)
	}
	count, _ := ParseCount("fails", "3")
	weight, _ := ParseWeight("256", "")
	port, added, _ := Port("8081")
	higher, isAdded, _ := Port("+1000")
	if count != 3 || weight != MaxWeight || port != 8081 || added || higher != 1000 || !isAdded {
		t.Errorf("numbers: got %d, %d, %d (added: %t) and %d (added: %t), want 3, 256, 8081 (false) and 1000 (true)", count, weight, port, added, higher, isAdded)
	}
	if !IsWeight(0) || !IsWeight(MaxWeight) || IsWeight(-1) || IsWeight(MaxWeight+1) {
		t.Error("weights are not those from 0 to 256")
	}
}

// sayOfPort returns what is wrong with a port, and "" if nothing is.
func sayOfPort(text string) string {
	port, _, err := Port(text)
	return sayOf(port, err)
}
