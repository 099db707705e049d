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

// Block is a piece of the README between fences.
type Block struct {
	Line     int
	Language string
	Text     string
}

func (b Block) String() string { return fmt.Sprintf("README.md:%d", b.Line) }

// Table is one of the README, without its first line.
type Table struct {
	Line  int
	About string // the line of text before it
	Head  []string
	Rows  [][]string
}

// README returns the text, the blocks and the tables of the README.
func README(t *testing.T) (text string, blocks []Block, tables []Table) {
	t.Helper()
	read, err := os.ReadFile(filepath.Join(Repository(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	text = strings.ReplaceAll(string(read), "\r\n", "\n")
	var open *Block
	var table *Table
	about := ""
	for i, line := range strings.Split(text, "\n") {
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &Block{Line: i + 1, Language: language}
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.Text += line + "\n"
		case strings.HasPrefix(line, "|"):
			cells := tableCells(line)
			switch {
			case table == nil:
				table = &Table{Line: i + 1, About: about, Head: cells}
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
	return text, blocks, tables
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
		t.Fatalf("the README has no table of each %s", title)
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
