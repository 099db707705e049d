// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Document is a Markdown file of the repository.
type Document struct{ Path, Text string }

// Block is a piece of a document between fences.
type Block struct {
	Path     string
	Line     int
	Language string
	Text     string
}

func (b Block) String() string { return fmt.Sprintf("%s:%d", b.Path, b.Line) }

// Table is a table of a document, without its first line.
type Table struct {
	Path  string
	Line  int
	About string // the line of text before it
	Head  []string
	Rows  [][]string
}

func (r Table) String() string { return fmt.Sprintf("%s:%d", r.Path, r.Line) }

// Documents returns the Markdown files of the repository that match one of the patterns.
func Documents(t *testing.T, patterns ...string) (found []Document) {
	t.Helper()
	root := Repository(t)
	for _, pattern := range patterns {
		paths, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no documents %s: %v", pattern, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if path, err = filepath.Rel(root, path); err != nil {
				t.Fatal(err)
			}
			found = append(found, Document{filepath.ToSlash(path), strings.ReplaceAll(string(text), "\r\n", "\n")})
		}
	}
	return found
}

// README returns README.md and the pages of docs, in that order, with their blocks and
// tables.
func README(t *testing.T) (found []Document, blocks []Block, tables []Table) {
	t.Helper()
	found = Documents(t, "README.md", "docs/*.md")
	for _, d := range found {
		b, r := d.Parse(t)
		blocks, tables = append(blocks, b...), append(tables, r...)
	}
	return found, blocks, tables
}

// Parse returns the blocks and the tables of a document.
func (d Document) Parse(t *testing.T) (blocks []Block, tables []Table) {
	t.Helper()
	var open *Block
	var table *Table
	about := ""
	for i, line := range strings.Split(d.Text, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &Block{Path: d.Path, Line: i + 1, Language: language}
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.Text += line + "\n"
		case strings.HasPrefix(line, "|"):
			cells := tableCells(line)
			switch {
			case table == nil:
				table = &Table{Path: d.Path, Line: i + 1, About: about, Head: cells}
			case !strings.HasPrefix(line, "|---"):
				table.Rows = append(table.Rows, cells)
			}
			continue
		case line != "":
			about = line
		}
		if table != nil {
			tables = append(tables, *table)
			table = nil
		}
	}
	if open != nil {
		t.Fatalf("%s is never closed", open)
	}
	return blocks, tables
}

// tableCells returns what is between the bars of a line.
func tableCells(line string) []string {
	const bar = "\x00"
	line = strings.ReplaceAll(strings.Trim(line, "|"), `\|`, bar)
	cells := strings.Split(line, "|")
	for i, cell := range cells {
		cells[i] = strings.TrimSpace(strings.ReplaceAll(cell, bar, "|"))
	}
	return cells
}

// BlocksIn returns the blocks of a language.
func BlocksIn(language string, blocks []Block) (found []Block) {
	for _, b := range blocks {
		if b.Language == language {
			found = append(found, b)
		}
	}
	return found
}

// TablesOf returns the tables whose first column has that title.
func TablesOf(t *testing.T, title string, tables []Table) (found []Table) {
	t.Helper()
	for _, table := range tables {
		if table.Head[0] == title {
			found = append(found, table)
		}
	}
	if len(found) == 0 {
		t.Fatalf("there is no table of each %s", title)
	}
	return found
}

var inCode = regexp.MustCompile("`([^`]*)`")

// InCode returns what is between backticks in a text.
func InCode(text string) (found []string) {
	for _, m := range inCode.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

var (
	fenced      = regexp.MustCompile("(?ms)^```.*?^```$")
	heading     = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// Prose is the text without the blocks.
func (d Document) Prose() string { return fenced.ReplaceAllString(d.Text, "") }

// HasAnchor reports whether a heading can be linked to by that name.
func (d Document) HasAnchor(name string) bool {
	return slices.ContainsFunc(heading.FindAllStringSubmatch(d.Prose(), -1), func(m []string) bool {
		return strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-") == name
	})
}
