// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Document is a Markdown file of the repository.
type Document struct {
	Path string // from the root of the repository, with slashes
	Text string
}

// Block is a piece of a document between fences.
type Block struct {
	Path     string
	Line     int
	Language string
	Section  string // the heading above it
	Text     string
}

// String returns where the block stands: file and line.
func (b Block) String() string { return fmt.Sprintf("%s:%d", b.Path, b.Line) }

// Table is a table of a document.
type Table struct {
	Path  string
	Line  int
	About string // the line of text before it
	Head  []string
	Rows  [][]string
}

// String returns where the table stands: file and line.
func (t Table) String() string { return fmt.Sprintf("%s:%d", t.Path, t.Line) }

// Documents returns the files of the repository that match the patterns, in the order of
// the patterns.
func Documents(t *testing.T, patterns ...string) (found []Document) {
	t.Helper()
	root := Repository(t)
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		if err != nil || len(files) == 0 {
			t.Fatalf("no documents %s: %v", pattern, err)
		}
		for _, file := range files {
			path, err := filepath.Rel(root, file)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, Document{filepath.ToSlash(path), strings.ReplaceAll(string(text), "\r\n", "\n")})
		}
	}
	return found
}

// Documentation returns the blocks and tables of README.md and then of the pages of docs.
func Documentation(t *testing.T) (blocks []Block, tables []Table) {
	t.Helper()
	for _, d := range Documents(t, "README.md", "docs/*.md") {
		b, r := d.parse(t)
		blocks, tables = append(blocks, b...), append(tables, r...)
	}
	return blocks, tables
}

// parse returns the blocks and the tables of a document.
func (d Document) parse(t *testing.T) (blocks []Block, tables []Table) {
	t.Helper()
	var open *Block
	var table *Table
	about, section := "", ""
	for i, line := range strings.Split(d.Text, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &Block{Path: d.Path, Line: i + 1, Language: language, Section: section}
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
			if title, isHeading := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); isHeading && strings.HasPrefix(line, "#") {
				section = title
			}
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

// BlocksUnder returns the blocks of a language in a section of a page. A test that asks for
// them fails if there are none.
func BlocksUnder(t *testing.T, page, section, language string) (found []Block) {
	t.Helper()
	blocks, _ := Documentation(t)
	for _, b := range BlocksIn(language, blocks) {
		if b.Path == page && b.Section == section {
			found = append(found, b)
		}
	}
	if len(found) == 0 {
		t.Fatalf("%s has no %s under %q", page, language, section)
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
		t.Fatalf("the documents have no table of each %s", title)
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
