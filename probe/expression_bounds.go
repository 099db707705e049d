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

// CEL counts what a call costs after it was made. That is too late for calls whose
// result can be much larger than what they are given: these are replaced by ones that
// know the size of their result before they make it.

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

// binding returns what a function does, in one of its forms.
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
		return types.WrapErr(errTooCostly)
	}
	return types.String(strings.Replace(text, old, by, limit))
}

// split is like strings.SplitN.
func split(args ...ref.Val) ref.Val {
	text, separator := string(args[0].(types.String)), string(args[1].(types.String))
	limit := limitOf(args, 2)
	if (limit < 0 || limit > maxCost) && strings.Count(text, separator) > maxCost {
		return types.WrapErr(errTooCostly)
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
			return types.WrapErr(errTooCostly)
		}
		out.WriteString(string(text))
	}
	return types.String(out.String())
}

// untrackedCosts are those of calls that CEL takes to cost nothing or little, although
// what they make can grow with every call.
var untrackedCosts = cel.CostTrackerOptions(
	interpreter.OverloadCostTracker(overloads.ExtFormatString, func(_ []ref.Val, result ref.Val) *uint64 {
		return new(sizeOf(result))
	}),
	// of two lists, the smaller one, so that a list can still be made item by item
	interpreter.OverloadCostTracker(overloads.AddList, func(args []ref.Val, _ ref.Val) *uint64 {
		return new(min(sizeOf(args[0]), sizeOf(args[1])))
	}),
)

// sizeOf returns the length of a text or a list, and 1 for what has none.
func sizeOf(value ref.Val) uint64 {
	if sizer, ok := value.(traits.Sizer); ok {
		if size, ok := sizer.Size().(types.Int); ok {
			return uint64(max(size, 1))
		}
	}
	return 1
}

// boundedFormat returns the function format, bounded.
func boundedFormat(format functions.FunctionOp) functions.FunctionOp {
	return func(args ...ref.Val) ref.Val {
		if left := spend(args[1], maxCost); left < 0 {
			return types.WrapErr(errTooCostly)
		}
		return format(args...)
	}
}

// spend takes from a budget what a value has in it when it is written out, where a
// part that is there several times counts as often. It stops below 0.
func spend(value ref.Val, budget int) int {
	switch value := value.(type) {
	case types.String:
		return budget - len(value)
	case types.Bytes:
		return budget - len(value)
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
	return budget - 1
}
