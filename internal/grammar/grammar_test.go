// SPDX-License-Identifier: Apache-2.0

package grammar

import (
	"errors"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Each option of a block is read once, unless it repeats.
func TestReadBlock_OptionsAreGivenOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		input, err string
		want       []string
	}{
		{"x", "", nil},
		{"x {\n}", "", nil},
		{"x {\na 1\nb\n}", "", []string{"a", "b"}},
		{"x {\nmany 1\nmany 2\n}", "", []string{"many", "many"}},
		{"x {\na 1\nb\na 2\n}", "option 'a' is given twice, at Testfile:4", []string{"a", "b"}},
	} {
		d := caddyfile.NewTestDispenser(test.input)
		d.Next()
		var got []string
		err := ReadBlock(d, func(option string) error {
			got = append(got, option)
			d.RemainingArgs()
			return nil
		}, func(option string) bool { return option == "many" })
		if text(err) != test.err || !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, error %q; want %q, error %q", test.input, got, text(err), test.want, test.err)
		}
	}
	d := caddyfile.NewTestDispenser("x {\na\nb\n}")
	d.Next()
	wrong := errors.New("wrong")
	if err := ReadBlock(d, func(string) error { return wrong }, nil); !errors.Is(err, wrong) || d.Val() != "a" {
		t.Errorf("got error %v at %s, want that of the first option", err, d.Val())
	}
}

func TestNoArg_NamesTheArgument(t *testing.T) {
	t.Parallel()
	for input, want := range map[string]string{
		"x":     "",
		"x {\n": "",
		"x y":   "a tcp check takes no argument; got 'y', at Testfile:1",
	} {
		d := caddyfile.NewTestDispenser(input)
		d.Next()
		if got := text(NoArg(d, "a tcp check")); got != want {
			t.Errorf("%q: got %q, want %q", input, got, want)
		}
	}
}

// The option is found through the place that a Dispenser adds.
func TestUnknownOptionError_IsFoundInItsError(t *testing.T) {
	t.Parallel()
	d := caddyfile.NewTestDispenser("x {\na 1\n}")
	for d.Next() && d.Val() != "a" {
		continue
	}
	err := At(d, ErrUnknownOption(d, "no such option"))
	if unknown, ok := errors.AsType[*UnknownOptionError](err); !ok || unknown.Option.Text != "a" || unknown.Option.Line != 2 {
		t.Errorf("got %+v, want the option a of line 2", unknown)
	}
	if want := "no such option, at Testfile:2, at Testfile:2"; text(err) != want {
		t.Errorf("got %q, want %q", text(err), want)
	}
	if err := At(d, nil); err != nil {
		t.Errorf("without an error: got %v", err)
	}
}

// text returns the text of an error, and "" if there is none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
