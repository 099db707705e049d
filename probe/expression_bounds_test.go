// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// The evaluation of a short expression can have any cost: texts and lists that double
// with every step, nested loops, and single calls with large results. Each is given up
// early. The test is not parallel, because it measures what the whole process
// allocates.
func TestExpression_CostIsBounded(t *testing.T) {
	const most = 1 << 30 // without a bound, more than the machine has
	repeat := func(first, step string, times int, last string) string {
		return first + strings.Repeat(step, times) + last
	}
	items := "[" + strings.Repeat("0,", 32<<10-1) + "0]"
	for name, test := range map[string]struct{ expression, body string }{
		"doubled by replace": {repeat("['aaaa']", ".map(x, x.replace('a', 'aa'))", 40, " == []"), ""},
		"doubled by join":    {repeat("['aaaa']", ".map(x, [x, x].join())", 40, " == []"), ""},
		"doubled by a separator": {
			repeat("['aaaa']", ".map(x, ['', '', ''].join(x))", 40, " == []"), "",
		},
		"doubled by format": {repeat("['aaaa']", ".map(x, '%s%s'.format([x, x]))", 40, " == []"), ""},
		"doubled by +":      {repeat("['aaaa']", ".map(x, x + x)", 40, " == []"), ""},
		"doubled by quote":  {repeat(`['"']`, ".map(x, strings.quote(x))", 60, " == []"), ""},
		"doubled lists":     {repeat("[[0]]", ".map(x, x + x)", 40, ".exists(x, x.exists(y, y == 1))"), ""},
		"lists of one list": {repeat("[[0]]", ".map(x, [x, x, x, x])", 30, ".exists(x, '%s'.format([x]) == '')"), ""},
		"maps of one map":   {repeat("[{'a': 0}]", ".map(x, {'a': x, 'b': x, 'c': x})", 30, ".exists(x, '%s'.format([x]) == '')"), ""},
		"one replace":       {"body.replace('', body) == ''", strings.Repeat("x", 64<<10)},
		"one replace of many": {
			"body.replace('x', body, 1000000) == ''", strings.Repeat("x", 64<<10),
		},
		"one split": {"body.split('') == []", strings.Repeat("x", 16<<20)},
		"one join":  {"body.split('').join(body) == ''", strings.Repeat("x", 64<<10)},
		"loops":     {"json.map(a, json.map(b, json.map(c, [a, b, c]))) == []", items},
	} {
		e := compileCEL(t, test.expression)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := e.check(t.Context(), reply{status: 200, body: []byte(test.body)})
		runtime.ReadMemStats(&after)
		want := "expression: costs more than 10000000 to evaluate: " + brief(test.expression)
		if got := text(err); got != want {
			t.Errorf("%s:\n got %q\nwant %q", name, got, want)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > most {
			t.Errorf("%s: %d MiB were allocated, want %d MiB at most", name, got>>20, most>>20)
		}
	}
}

// Expressions for usual health answers of the default size cost a small part of the
// limit.
func TestExpression_UsualOnesAreCheap(t *testing.T) {
	t.Parallel()
	object := `{"name":"database","ok":true,"n":1}`
	objects := "[" + strings.Repeat(object+",", (64<<10)/len(object)-3) + object + "]"
	numbers := "[" + strings.Repeat("0,", 32<<10-2) + "0]"
	text := strings.Repeat("line\n", (64<<10)/5)
	for _, test := range []struct{ expression, body string }{
		{"json.all(i, i.ok && i.name.startsWith('data') && i.n < 10)", objects},
		{"json.filter(i, i.ok).map(i, i.name).exists(n, n.matches('^data[a-z]+$'))", objects},
		{"json.map(i, i.name).join(',').size() > 0", objects},
		{"json.all(i, i == 0.0) && json.map(i, i + 1.0).size() > 0 && 0.0 in json", numbers},
		{"body.split('\\n').all(l, l.trim() == 'line' || l == '')", text},
		{"body.replace('line', 'l').replace('\\n', '').size() > 0", text},
		{"body.lowerAscii().contains('line\\nline') && body.matches('(?s)^line.*line\\n$') && body.indexOf('line') == 0", text},
	} {
		if err := compileCEL(t, test.expression).check(t.Context(), reply{status: 200, body: []byte(test.body)}); err != nil {
			t.Errorf("%s: %v", test.expression, err)
		}
	}
}

// The bounded functions have the results that CEL specifies.
func TestExpression_BoundedFunctionsKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	for _, expression := range []string{
		"'abcabc'.replace('b', 'x') == 'axcaxc'",
		"'abcabc'.replace('b', 'x', 1) == 'axcabc'",
		"'abcabc'.replace('b', 'x', 0) == 'abcabc'",
		"'abcabc'.replace('b', 'x', -1) == 'axcaxc'",
		"'abcabc'.replace('b', 'x', -9223372036854775808) == 'axcaxc'",
		"'ab'.replace('', '-') == '-a-b-'",
		"'abc'.replace('abc', '') == ''",
		"'a,b,c'.split(',') == ['a', 'b', 'c']",
		"'a,b,c'.split(',', 2) == ['a', 'b,c']",
		"'a,b,c'.split(',', 0) == []",
		"'a,b,c'.split(',', -1).size() == 3",
		"'größe'.split('') == ['g', 'r', 'ö', 'ß', 'e']",
		"['a', 'b'].join() == 'ab' && ['a', 'b'].join('-') == 'a-b' && [].join('-') == ''",
		"(['a'] + ['b']).join('-') == 'a-b' && ['a', 'b'].map(x, x + x).join('-') == 'aa-bb'",
		"json.join('-') == 'x-y'",
		"'%s is %d, %s'.format(['a', 1, [true, {'b': null}]]) == 'a is 1, [true, {b: null}]'",
		"[1, 2] + [3] == [1, 2, 3]",
	} {
		if err := compileCEL(t, expression).check(t.Context(), reply{status: 200, body: []byte(`["x","y"]`)}); err != nil {
			t.Errorf("%s: %v", expression, err)
		}
	}
	for expression, want := range map[string]string{
		"json.join('-') == ''":    "expression: join: invalid input: 1",
		"'%d'.format(json) == ''": "expression: error during formatting: decimal clause can only be used on int",
	} {
		err := compileCEL(t, expression).check(t.Context(), reply{status: 200, body: []byte(`["x",1]`)})
		if got := text(err); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", expression, got, want)
		}
	}
}

// A parsed body can take a hundred times the memory of its text, so the number of its
// values is bounded. Only expressions that read it as JSON fail because of that.
func TestExpression_JSONValuesAreBounded(t *testing.T) {
	list := func(item string, n int) string { return "[" + strings.Repeat(item+",", n-1) + item + "]" }
	const most, refused = 64 << 20, "expression: the body has more than 250000 JSON values"
	for _, test := range []struct{ name, expression, body, want string }{
		{"as many as allowed", "json.size() == 249999", list("0", 249_999), ""},
		{"one more", "json.size() == 250000", list("0", 250_000), refused},
		{"empty objects", "json[0] == {}", list("{}", 250_000), refused},
		{"objects", "json[0].a == 1", list(`{"a":1}`, 125_000), refused},
		{"64 MiB of objects", "json[0] == {}", list("{}", (64<<20)/3), refused},
		{"64 MiB of arrays", "json[0] == []", list("[ ]", (64<<20)/4), refused},
		{"a long text", `json[0].startsWith("[,")`, `["` + strings.Repeat(`[,{\"`, 200_000) + `"]`, ""},
		{"not looked at", "status == 200 || json.ok", list("{}", 250_000), ""},
	} {
		e := compileCEL(t, test.expression)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := e.check(t.Context(), reply{status: 200, body: []byte(test.body)})
		runtime.ReadMemStats(&after)
		if got := text(err); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
		if got := int(after.TotalAlloc-before.TotalAlloc) - len(test.body); got > most {
			t.Errorf("%s: %d MiB were allocated besides the body, want %d MiB at most", test.name, got>>20, most>>20)
		}
	}
}

func TestCountValues_CountsWhatJSONHas(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		`0`: 1, `"a"`: 1, `null`: 1, `[]`: 1, `{}`: 1, ` [ ] `: 1, "{\n}": 1,
		`[1]`: 2, `[1,2]`: 3, `[[]]`: 2, `[[],[]]`: 3, `[{},{}]`: 3, `[[1]]`: 3,
		`{"a":1}`: 2, `{"a":1,"b":[1,2,{"c":{}}]}`: 7,
		`["[,{"]`: 2, `["\"[,"]`: 2, `["\\",1]`: 3, `{"[":"]"}`: 2, `["",""]`: 3,
	} {
		if got := countValues([]byte(text)); got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
}

// An expression is not evaluated after the end of the context.
func TestExpression_NotEvaluatedAfterTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, source := range []string{"true", "status == 200", "body.matches('a')"} {
		if got, want := text(compileCEL(t, source).check(ctx, reply{status: 200, header: http.Header{}})), context.Canceled.Error(); got != want {
			t.Errorf("%s: got %q, want %q", source, got, want)
		}
	}
}
