// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// The cost of an evaluation is bounded by maxCost: each call costs callCost, and each
// byte of a text that a call makes costs one. cel.CostLimit is not usable: with it, the
// time of a loop grows with the square of the number of its items, to 10 s for the
// 32,000 items that 64 KiB can hold.
//
// A call is counted after it was made. That is too late for functions whose result can
// be much larger than their arguments. They are replaced by functions that compute the
// size of the result first.
const (
	maxCost  = 10_000_000
	callCost = 5
)

// errTooCostly is the error of an evaluation that costs more than maxCost.
var errTooCostly = fmt.Errorf("costs more than %d to evaluate", maxCost)

// tooCostly returns the error that ends an evaluation. `||` and loops can ignore other
// errors, but not this one.
func tooCostly() interpreter.EvalCancelledError {
	return interpreter.EvalCancelledError{Message: errTooCostly.Error(), Cause: interpreter.CostLimitExceeded}
}

// costVariable is the name of the counter of an evaluation among its variables. An
// expression cannot name it.
const costVariable = "@cost"

// counted is a call that is counted.
type counted struct{ interpreter.InterpretableCall }

// count wraps the calls of an expression, so that they are counted.
func count(step interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	if call, ok := step.(interpreter.InterpretableCall); ok {
		return &counted{call}, nil
	}
	return step, nil
}

// Exec makes the call.
func (c *counted) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	value := c.InterpretableCall.Exec(frame)
	cost := callCost
	switch value := value.(type) {
	case types.String:
		cost += len(value)
	case types.Bytes:
		cost += len(value)
	case traits.Lister: // a concatenation of lists takes no memory before it is read
		if size, ok := value.Size().(types.Int); ok && (size < 0 || size > maxCost) {
			panic(tooCostly())
		}
	}
	if counter, ok := frame.ResolveName(costVariable); ok {
		if total, ok := counter.(*int); ok {
			if *total += cost; *total > maxCost {
				panic(tooCostly())
			}
		}
	}
	return value
}

// Eval makes the call, for callers that have no frame.
func (c *counted) Eval(vars interpreter.Activation) ref.Val {
	return c.Exec(interpreter.AsFrame(vars))
}

// boundedStrings replaces functions for strings by bounded ones.
func boundedStrings(env *cel.Env) (*cel.Env, error) {
	text, number, texts := cel.StringType, cel.IntType, cel.ListType(cel.StringType)
	format, err := binding(env, "format", overloads.ExtFormatString)
	if err != nil {
		return nil, err
	}
	for _, function := range []cel.EnvOption{
		cel.Function("format",
			cel.MemberOverload(overloads.ExtFormatString, []*cel.Type{text, cel.ListType(cel.DynType)}, text, cel.FunctionBinding(boundedFormat(format)))),
		cel.Function("replace",
			cel.MemberOverload("string_replace_string_string", []*cel.Type{text, text, text}, text, cel.FunctionBinding(replace)),
			cel.MemberOverload("string_replace_string_string_int", []*cel.Type{text, text, text, number}, text, cel.FunctionBinding(replace))),
		cel.Function("split",
			cel.MemberOverload("string_split_string", []*cel.Type{text, text}, texts, cel.FunctionBinding(split)),
			cel.MemberOverload("string_split_string_int", []*cel.Type{text, text, number}, texts, cel.FunctionBinding(split))),
		cel.Function("join",
			cel.MemberOverload("list_join", []*cel.Type{texts}, text, cel.FunctionBinding(join)),
			cel.MemberOverload("list_join_string", []*cel.Type{texts, text}, text, cel.FunctionBinding(join))),
	} {
		if env, err = function(env); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// binding returns the implementation of an overload of a function.
func binding(env *cel.Env, function, overload string) (functions.FunctionOp, error) {
	if declared := env.Functions()[function]; declared != nil {
		bindings, err := declared.Bindings()
		if err != nil {
			return nil, err
		}
		for _, b := range bindings {
			if b.Operator == overload && b.Function != nil {
				return b.Function, nil
			}
		}
	}
	return nil, fmt.Errorf("CEL has no function %s (%s)", function, overload)
}

// replace is like strings.Replace.
func replace(args ...ref.Val) ref.Val {
	text, old, by := string(args[0].(types.String)), string(args[1].(types.String)), string(args[2].(types.String))
	limit := limitOf(args, 3)
	count := strings.Count(text, old)
	if limit >= 0 {
		count = min(count, limit)
	}
	if len(text)+count*max(len(by)-len(old), 0) > maxCost {
		panic(tooCostly())
	}
	return types.String(strings.Replace(text, old, by, limit))
}

// split is like strings.SplitN.
func split(args ...ref.Val) ref.Val {
	text, separator := string(args[0].(types.String)), string(args[1].(types.String))
	limit := limitOf(args, 2)
	if (limit < 0 || limit > maxCost) && strings.Count(text, separator) > maxCost {
		panic(tooCostly())
	}
	return types.NewStringList(types.DefaultTypeAdapter, strings.SplitN(text, separator, limit))
}

// limitOf returns the argument at a position, or -1 if there is none.
func limitOf(args []ref.Val, position int) int {
	if len(args) <= position {
		return -1
	}
	return int(max(args[position].(types.Int), -1))
}

// join is like strings.Join.
func join(args ...ref.Val) ref.Val {
	list, separator := args[0].(traits.Lister), ""
	if len(args) > 1 {
		separator = string(args[1].(types.String))
	}
	var out strings.Builder
	for it, i := list.Iterator(), 0; it.HasNext() == types.True; i++ {
		if i > 0 {
			out.WriteString(separator)
		}
		item := it.Next()
		text, ok := item.(types.String)
		if !ok {
			return types.NewErr("join: invalid input: %v", item)
		}
		if out.Len()+len(text)+len(separator) > maxCost || i > maxCost {
			panic(tooCostly())
		}
		out.WriteString(string(text))
	}
	return types.String(out.String())
}

// boundedFormat returns the function format, bounded.
func boundedFormat(format functions.FunctionOp) functions.FunctionOp {
	return func(args ...ref.Val) ref.Val {
		if left := spend(args[1], maxCost); left < 0 {
			panic(tooCostly())
		}
		return format(args...)
	}
}

// spend subtracts the size of a value, as text, from a budget. A part that occurs
// several times counts each time. It stops below 0.
func spend(value ref.Val, budget int) int {
	switch value := value.(type) {
	case types.String:
		budget -= len(value)
	case types.Bytes:
		budget -= len(value)
	case traits.Mapper:
		for it := value.Iterator(); budget >= 0 && it.HasNext() == types.True; {
			key := it.Next()
			budget = spend(value.Get(key), spend(key, budget))
		}
	case traits.Lister:
		for it := value.Iterator(); budget >= 0 && it.HasNext() == types.True; {
			budget = spend(it.Next(), budget)
		}
	}
	return budget - callCost
}
