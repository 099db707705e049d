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
)

// expression is a compiled CEL expression over an answer.
type expression struct {
	text      string
	program   cel.Program
	readsBody bool // it looks at the body, as text or as JSON
}

// reply is what an expression is about.
type reply struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// environment is what expressions know: the answer, and the functions for
// strings that Caddy's own expressions have.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("status", cel.IntType),
		cel.Variable("headers", cel.MapType(cel.StringType, cel.ListType(cel.StringType))),
		cel.Variable("body", cel.StringType),
		cel.Variable("json", cel.DynType),
		cel.Variable("duration", cel.DurationType),
		ext.Strings(),
	)
})

// compileExpression compiles an expression. Errors say where in it they are.
func compileExpression(text string) (*expression, error) {
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("expression: %v", err)
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		var places []string
		for _, e := range issues.Errors() {
			places = append(places, fmt.Sprintf("line %d, column %d: %s", max(e.Location.Line(), 1), max(e.Location.Column()+1, 1), e.Message))
		}
		return nil, fmt.Errorf("expression must be CEL over status, headers, body, json and duration: %s; got '%s'", strings.Join(places, "; "), text)
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("expression must be true or false, and not a value of the type %s; got '%s'", t, text)
	}
	e := &expression{text: text}
	for _, reference := range ast.NativeRep().ReferenceMap() {
		name := strings.TrimPrefix(reference.Name, ".")
		e.readsBody = e.readsBody || name == "json" || name == "body"
	}
	e.program, err = env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.InterruptCheckFrequency(100))
	if err != nil {
		return nil, fmt.Errorf("expression: %v; got '%s'", err, text)
	}
	return e, nil
}

// check evaluates the expression and returns why the answer does not hold.
func (e *expression) check(ctx context.Context, a reply) error {
	result, _, err := e.program.ContextEval(ctx, map[string]any{
		"status":   a.status,
		"headers":  map[string][]string(a.header),
		"body":     strings.ToValidUTF8(string(a.body), "\uFFFD"),
		"json":     sync.OnceValue(a.json),
		"duration": a.took,
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("expression: %w", err)
	case result == types.True:
		return nil
	case result == types.False:
		return errors.New("expression is false: " + e.text)
	default:
		return fmt.Errorf("expression gives a value of the type %s, want true or false: %s", result.Type().TypeName(), e.text)
	}
}

// json returns the body as what it is in JSON. What is none fails an expression
// only if it comes to look at it.
func (a *reply) json() ref.Val {
	var parsed any
	if err := json.Unmarshal(a.body, &parsed); err != nil {
		return types.WrapErr(fmt.Errorf("the first %d bytes of the body are not JSON: %w", len(a.body), err))
	}
	return types.DefaultTypeAdapter.NativeToValue(parsed)
}
