// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// compileCEL compiles a valid expression.
func compileCEL(tb testing.TB, source string) *expression {
	tb.Helper()
	e, err := compileExpression(source, source)
	if err != nil {
		tb.Fatalf("%s: %v", source, err)
	}
	return e
}

// An answer passes if the expression is true for it. Everything else is a failure, and
// each kind of failure has a reason of its own.
func TestExpression_PassesOnlyIfTrue(t *testing.T) {
	t.Parallel()
	const app = `{"ok":true,"not":false,"text":"yes","one":1,"half":0.5,"nothing":null,"none":{},` +
		`"list":[1,2,3],"items":[{"ok":true,"n":1},{"ok":true,"n":2}],"mixed":[{"ok":true},{"ok":false}]}`
	header := http.Header{"X-Role": {"primary", "second"}, "Content-Type": {"application/json"}}
	for _, test := range []struct{ expression, body, want string }{
		{"status == 200", "", ""},
		{"status >= 200 && status < 300", "", ""},
		{"status in [200, 204]", "", ""},
		{"status != 200", "", "expression is false: status != 200"},
		{"false", "", "expression is false: false"},

		{"headers['X-Role'][0] == 'primary'", "", ""},
		{"headers['X-Role'].exists(v, v == 'second')", "", ""},
		{"'X-Role' in headers && !('X-Other' in headers)", "", ""},
		{"size(headers) == 2", "", ""},
		// names are canonical, as documented
		{"headers['x-role'][0] == 'primary'", "", "expression: no such key: x-role"},
		{"headers['X-Role'][2] == 'primary'", "", "expression: index out of bounds: 2"},

		{"duration == duration('1500ms')", "", ""},
		{"duration < duration('5s')", "", ""},
		{"duration < duration('1s')", "", "expression is false: duration < duration('1s')"},
		{"duration.getMilliseconds() == 1500", "", ""},

		{"body == ''", "", ""},
		{"body.contains('ready') && body.startsWith('I')", "I am ready.", ""},
		{"body.matches('^a{2}$')", "aa", ""},
		{"body.matches('^a{2}$')", "a", "expression is false: body.matches('^a{2}$')"},
		{"body.size() == 6", "größer", ""}, // characters, not bytes
		// the functions for strings of Caddy's own expressions
		{"body.trim().lowerAscii() == 'ready'", " READY\r\n", ""},
		{"body.split(',').size() == 3 && body.split(',')[2] == 'c'", "a,b,c", ""},
		{"body.indexOf('b') == 1 && body.substring(1) == 'bc' && body.charAt(2) == 'c'", "abc", ""},
		{"body.replace('a', 'b') == 'bbb' && ['a', 'b'].join('-') == 'a-b'", "aba", ""},
		{"body.substring(4) == ''", "abc", "expression: index out of range: 4"},

		{"json.ok", app, ""},
		{"json.ok && json.text == 'yes' && json['one'] == 1 && json.half < 1", app, ""},
		{"json.items.all(i, i.ok)", app, ""},
		{"json.mixed.all(i, i.ok)", app, "expression is false: json.mixed.all(i, i.ok)"},
		{"json.mixed.exists(i, i.ok) && json.mixed.exists_one(i, i.ok)", app, ""},
		{"json.items.filter(i, i.n > 1).map(i, i.n) == [2]", app, ""},
		{"json.list == [1, 2, 3] && 2 in json.list && size(json.list) == 3", app, ""},
		{"has(json.ok) && !has(json.other) && !has(json.none.other)", app, ""},
		{"json.nothing == null", app, ""},
		{"json == null", "null", ""},
		{"json", "true", ""},
		{"json[0]", "[true]", ""},
		{"json == 5", " 5\n", ""},
		{"json.all(k, json[k])", `{"a":true,"b":true}`, ""},
		{"int(json.one) + 1 == 2", app, ""},

		{"json.not", app, "expression is false: json.not"},
		{"json.other", app, "expression: no such key: other"},
		{"json.none.other == 1", app, "expression: no such key: other"},
		{"json.nothing.other == 1", app, "expression: no such key: other"},
		{"json.list[3] == 1", app, "expression: index out of bounds: 3"},
		{"json.ok", "null", "expression: no such key: ok"},
		{"json.ok", "true", "expression: no such key: ok"},
		// a value of another type is neither true nor false
		{"json.text", app, "expression gives a value of the type string, want true or false: json.text"},
		{"json.one", app, "expression gives a value of the type double, want true or false: json.one"},
		{"json.list", app, "expression gives a value of the type list, want true or false: json.list"},
		{"json.nothing", app, "expression gives a value of the type null_type, want true or false: json.nothing"},
		{"json", app, "expression gives a value of the type map, want true or false: json"},
		{"json.text && json.ok", app, "expression: no such overload"},
		{"!json.text", app, "expression: no such overload"},
		{"json.text > 1", app, "expression: no such overload"},

		{"1 / (status - 200) == 1", "", "expression: division by zero"},
		{"1 % (status - 200) == 1", "", "expression: modulus by zero"},
		{"9223372036854775807 + status > 0", "", "expression: integer overflow"},

		{"json.ok", "", "expression: the body is not JSON: unexpected end of JSON input"},
		{"json.ok", app[:16], "expression: the body is not JSON: unexpected end of JSON input"},
		{"json.ok", "<p>", "expression: the body is not JSON: invalid character '<' looking for beginning of value"},
		{"json.ok", "{} {}", "expression: the body is not JSON: invalid character '{' after top-level value"},
		{"json.ok", "{'ok':true}", "expression: the body is not JSON: invalid character '\\'' looking for beginning of object key string"},
		{"has(json.ok)", "<p>", "expression: the body is not JSON: invalid character '<' looking for beginning of value"},
		{"status == 200 && json.ok", "<p>", "expression: the body is not JSON: invalid character '<' looking for beginning of value"},
		// a part that is not needed decides nothing, on either side
		{"status == 200 || json.ok", "<p>", ""},
		{"json.ok || status == 200", "<p>", ""},
		{"status == 200 ? true : json.ok", "<p>", ""},
		{"status == 500 && json.ok", "<p>", "expression is false: status == 500 && json.ok"},
		{"json.ok && status == 500", "<p>", "expression is false: json.ok && status == 500"},
		{"body == '<p>' || json.ok", "<p>", ""},
		{"json.other || json.ok", app, ""},
		{"1 / (status - 200) == 1 || status == 200", "", ""},

		// invalid UTF-8 is replaced, as in JSON
		{"body == 'a\uFFFDb'", "a\xffb", ""},
		{"body.size() == 1", "\xff", ""},
		{"json.a == '\uFFFD'", "{\"a\":\"\xff\"}", ""},
		{"body.matches('^ready')", "ready\xff\xfe", ""},
		{"json.ok", "\xff", "expression: the body is not JSON: invalid character 'ÿ' looking for beginning of value"},
		{"body == '\\u0000'", "\x00", ""},
	} {
		e := compileCEL(t, test.expression)
		err := e.check(t.Context(), reply{status: 200, header: header, body: []byte(test.body), took: 1500 * time.Millisecond})
		if got := text(err); got != test.want {
			t.Errorf("%s, body %.40q:\n got %q\nwant %q", test.expression, test.body, got, test.want)
		}
	}
}

// An expression that cannot be evaluated, or cannot be true or false, is an error when
// the config is loaded. The error names the position.
func TestExpression_InvalidOneDoesNotCompile(t *testing.T) {
	t.Parallel()
	const (
		cel    = "expression must be CEL over status, headers, body, json and duration: "
		either = "expression must be true or false, and not a value of the type "
		tokens = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"
	)
	for _, test := range []struct{ expression, want string }{
		{"status == 200 &&", cel + "line 1, column 17: Syntax error: mismatched input '<EOF>' expecting " + tokens + "; got 'status == 200 &&'"},
		{"(status == 200", cel + "line 1, column 15: Syntax error: missing ')' at '<EOF>'; got '(status == 200'"},
		{"code == 200", cel + "line 1, column 1: undeclared reference to 'code' (in container ''); got 'code == 200'"},
		{"status == 200 && now() > 1", cel + "line 1, column 21: undeclared reference to 'now' (in container ''); got 'status == 200 && now() > 1'"},
		{"status == '200'", cel + "line 1, column 8: found no matching overload for '_==_' applied to '(int, string)'; got 'status == '200''"},
		{"status && true", cel + "line 1, column 1: expected type 'bool' but found 'int'; got 'status && true'"},
		{"headers['A'] == 'b'", cel + "line 1, column 14: found no matching overload for '_==_' applied to '(list(string), string)'; got 'headers['A'] == 'b''"},
		{"duration < 5", cel + "line 1, column 10: found no matching overload for '_<_' applied to '(duration, int)'; got 'duration < 5'"},
		{"body.reverse(1) == ''", cel + "line 1, column 13: found no matching overload for 'reverse' applied to 'string.(int)'; got 'body.reverse(1) == '''"},
		// every position is named, and lines are counted
		{"code == 200 ||\n  status == 200 ||\n  state == 'ok'", cel + "line 1, column 1: undeclared reference to 'code' (in container ''); line 3, column 3: undeclared reference to 'state' (in container ''); got 'code == 200 ||\n  status == 200 ||\n  state == 'ok''"},

		{"status", either + "int; got 'status'"},
		{"body", either + "string; got 'body'"},
		{"'true'", either + "string; got ''true''"},
		{"headers", either + "map(string, list(string)); got 'headers'"},
		{"headers['A']", either + "list(string); got 'headers['A']'"},
		{"duration", either + "google.protobuf.Duration; got 'duration'"},
		{"status == 200 ? 1 : 0", either + "int; got 'status == 200 ? 1 : 0'"},
		{"null", either + "null_type; got 'null'"},

		{"body.matches('(')", "expression: error parsing regexp: missing closing ): `(`; got 'body.matches('(')'"},
	} {
		_, err := compileExpression(test.expression, test.expression)
		if got := text(err); got != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.expression, got, test.want)
		}
	}
}

// The body is read for an expression only if it may use it.
func TestExpression_ReadsBodyOnlyIfNamed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		expression string
		body       bool
	}{
		{"status == 200", false},
		{"headers['Body'][0] == 'json'", false},
		{"'body json' == \"json\"", false},
		{"duration < duration('1s')", false},
		{"body == ''", true},
		{"status == 200 || body.contains('json')", true},
		{"json.ok", true},
		{"json", true},
		{"json['ok']", true},
		{"has(json.ok)", true},
		{"status == 200 || [1].all(i, json.ok)", true},
		{"json.body == body", true},
		{"{'a': json}.a", true},
		{"[1].exists(json, .json.ok)", true}, // a field, and not the variable of the loop
	} {
		e := compileCEL(t, test.expression)
		if e.readsBody != test.body {
			t.Errorf("%s: got %t, want %t", test.expression, e.readsBody, test.body)
		}
	}
}

// One compiled expression judges the answers of all upstreams at once, each on its own.
// The race detector finds what they share.
func TestExpression_ConcurrentEvaluationsShareNothing(t *testing.T) {
	t.Parallel()
	const source = "status == json.status && headers['X-N'][0] == json.n && body.matches('\"n\":\"[0-9]+\"') && json.items.all(i, i < json.limit)"
	e := compileCEL(t, source)
	result := make(chan error)
	const workers = 8
	for worker := range workers {
		go func() {
			var failed error
			for i := range 50 {
				n, limit, want := fmt.Sprint(worker*1000+i), 3, ""
				if i%2 == 1 {
					limit, want = 2, "expression is false: "+source
				}
				err := e.check(t.Context(), reply{
					status: 200 + i, header: http.Header{"X-N": {n}},
					body: fmt.Appendf(nil, `{"status":%d,"n":"%s","items":[0,1,2],"limit":%d}`, 200+i, n, limit),
				})
				if got := text(err); got != want {
					failed = fmt.Errorf("worker %d, answer %d: got %q, want %q", worker, i, got, want)
				}
			}
			result <- failed
		}()
	}
	for range workers {
		if err := testkit.Wait(t, result, long); err != nil {
			t.Error(err)
		}
	}
}
