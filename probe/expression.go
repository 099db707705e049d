// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// maxValues bounds how many JSON values an expression can use: a parsed value can take
// a hundred times the memory of its text.
const maxValues = 250_000

// expression is a compiled CEL expression over an answer. It is shown as it was
// written.
type expression struct {
	text      string
	program   cel.Program
	readsBody bool // it reads the body, as text or as JSON
	secret    bool // it has placeholders, so values that it reads are not shown
}

// reply is the answer that an expression judges.
type reply struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// environment declares the variables of expressions, and the functions for strings that
// Caddy's own expressions have.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("status", cel.IntType),
		cel.Variable("headers", cel.MapType(cel.StringType, cel.ListType(cel.StringType))),
		cel.Variable("body", cel.StringType),
		cel.Variable("json", cel.DynType),
		cel.Variable("duration", cel.DurationType),
		ext.Strings(),
		boundedStrings,
	)
})

// compileExpression compiles an expression whose placeholders are replaced. Errors name
// the positions in it, and show it as written.
func compileExpression(written, text string) (*expression, error) {
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("expression: %v", err)
	}
	secret := text != written
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		var places []string
		for _, e := range issues.Errors() {
			place := fmt.Sprintf("line %d, column %d", max(e.Location.Line(), 1), max(e.Location.Column()+1, 1))
			if !secret {
				place += ": " + e.Message
			}
			places = append(places, place)
		}
		if secret {
			places = append(places, "counted with its placeholders replaced")
		}
		return nil, fmt.Errorf("expression must be CEL over status, headers, body, json and duration: %s; got '%s'", strings.Join(places, "; "), written)
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("expression must be true or false, and not a value of the type %s; got '%s'", t, written)
	}
	e := &expression{text: written, secret: secret}
	for _, reference := range ast.NativeRep().ReferenceMap() {
		name := strings.TrimPrefix(reference.Name, ".")
		e.readsBody = e.readsBody || name == "json" || name == "body"
	}
	e.program, err = env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.InterruptCheckFrequency(100), cel.CustomDecoratorV2(count))
	switch {
	case err != nil && secret:
		return nil, fmt.Errorf("expression cannot be evaluated with its placeholders replaced; got '%s'", written)
	case err != nil:
		return nil, fmt.Errorf("expression: %v; got '%s'", err, written)
	}
	return e, nil
}

// check evaluates the expression, and returns an error unless it is true.
func (e *expression) check(ctx context.Context, a reply) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	result, _, err := e.program.ContextEval(ctx, map[string]any{
		"status":   a.status,
		"headers":  map[string][]string(a.header),
		"body":     sync.OnceValue(a.text),
		"json":     sync.OnceValue(a.json),
		"duration": a.took,

		costVariable: new(int),
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return e.failure(err)
	case result == types.True:
		return nil
	case result == types.False:
		return errors.New("expression is false: " + brief(e.text))
	default:
		return fmt.Errorf("expression gives a value of the type %s, want true or false: %s", result.Type().TypeName(), brief(e.text))
	}
}

// failure returns the error of an evaluation that has no result.
func (e *expression) failure(err error) error {
	if cancelled, ok := errors.AsType[interpreter.EvalCancelledError](err); ok && cancelled.Cause == interpreter.CostLimitExceeded {
		return fmt.Errorf("expression: %w: %s", errTooCostly, brief(e.text))
	}
	if invalid, ok := errors.AsType[*jsonError](err); ok {
		return fmt.Errorf("expression: %w", invalid)
	}
	if e.secret { // the text of the error can have a part of the expression in it
		return errors.New("expression cannot be evaluated: " + brief(e.text))
	}
	return errors.New("expression: " + visible(err.Error()))
}

// text returns the body as text.
func (a *reply) text() ref.Val { return types.String(strings.ToValidUTF8(string(a.body), "\uFFFD")) }

// json returns the body parsed as JSON. A body that is not JSON fails an expression
// only if the expression reads it.
func (a *reply) json() ref.Val {
	if countValues(a.body) > maxValues {
		return types.WrapErr(&jsonError{fmt.Errorf("the body has more than %d JSON values", maxValues)})
	}
	var parsed any
	if err := json.Unmarshal(a.body, &parsed); err != nil {
		return types.WrapErr(&jsonError{fmt.Errorf("the body is not JSON: %w", err)})
	}
	return types.DefaultTypeAdapter.NativeToValue(parsed)
}

// jsonError is the reason why a body cannot be used as JSON.
type jsonError struct{ error }

// Unwrap returns the error itself.
func (e *jsonError) Unwrap() error { return e.error }

// countValues returns the number of JSON values in a text, arrays and objects included:
// one, one more for each comma, and one for the first element of each array or object
// that is not empty.
func countValues(text []byte) int {
	count, inString, last := 1, false, byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString, c == ' ', c == '\t', c == '\r', c == '\n':
			continue
		case c == ',', c == '[', c == '{':
			count++
		case c == ']' && last == '[', c == '}' && last == '{':
			count--
		}
		last = c
	}
	return count
}
