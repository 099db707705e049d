// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
	"golang.org/x/text/width"
)

// screen is the terminal that a command writes to.
type screen struct {
	columns, lines int // 0 if it is no terminal: then nothing has to fit
	colours        bool
	moves          bool // the cursor can be moved
}

func screenOf(out io.Writer) screen {
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return screen{}
	}
	columns, lines, err := term.GetSize(int(file.Fd()))
	if err != nil || columns <= 0 || lines <= 0 {
		columns, lines = 80, 24
	}
	return newScreen(columns, lines)
}

// newScreen returns the screen of a terminal, of which the environment says what it can do.
func newScreen(columns, lines int) screen {
	moves := os.Getenv("TERM") != "dumb"
	return screen{columns: columns, lines: lines, colours: moves && os.Getenv("NO_COLOR") == "", moves: moves}
}

const (
	home        = "\x1b[H"        // cursor to the top left
	clearScreen = "\x1b[H\x1b[2J" // and clear
	clearLine   = "\x1b[K"        // from the cursor on
	clearBelow  = "\x1b[J"
	plain       = "\x1b[0m"
	red         = "\x1b[31m"
	green       = "\x1b[32m"
	yellow      = "\x1b[33m"
	cyan        = "\x1b[36m"
	boldRed     = "\x1b[1;31m"
)

// coloured puts a colour around text if the terminal shows colours and there is one.
func (s screen) coloured(colour, text string) string {
	if !s.colours || colour == "" {
		return text
	}
	return colour + text + plain
}

// alarm writes what must not be overlooked.
func (s screen) alarm(to *bytes.Buffer, text string) {
	for _, line := range wrap("!! "+text, s.columns) {
		to.WriteString(s.coloured(boldRed, line) + "\n")
	}
}

// fit leaves out the lines below the end of the screen, and says how many.
func (s screen) fit(shown []byte) []byte {
	lines := bytes.SplitAfter(shown, []byte("\n"))
	room := s.lines - 2 // the cursor is in the last line
	if s.lines == 0 || len(lines)-1 <= room+1 {
		return shown
	}
	room = max(0, room)
	omitted := wrap(fmt.Sprintf("… %d more lines do not fit", len(lines)-1-room), s.columns)[0]
	return append(bytes.Join(lines[:room], nil), omitted+"\n"...)
}

// inPlace returns lines that replace what the terminal shows. Only what differs changes there,
// so it does not flicker.
func (s screen) inPlace(begin string, lines []byte) []byte {
	lines = bytes.ReplaceAll(lines, []byte("\n"), []byte(clearLine+"\n"))
	return slices.Concat([]byte(begin), lines, []byte(clearBelow))
}

// printable replaces characters that a terminal could interpret as commands.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// printableJSON returns the same JSON with characters escaped that a terminal could
// interpret as commands.
func printableJSON(text []byte) []byte {
	var safe bytes.Buffer
	for _, r := range string(text) {
		switch {
		case unicode.IsPrint(r), r == '\n':
			safe.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&safe, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			fmt.Fprintf(&safe, `\u%04x`, r)
		}
	}
	return safe.Bytes()
}

// columnsOf returns how many columns of a terminal text takes.
func columnsOf(text string) (columns int) {
	for _, r := range text {
		columns += columnsOfRune(r)
	}
	return columns
}

func columnsOfRune(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0 // it combines with the character before
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	default:
		return 1
	}
}

// wrap breaks text into lines of at most so many columns, at spaces where possible. It
// breaks nothing if columns is 0.
func wrap(text string, columns int) []string {
	if columns <= 0 || columnsOf(text) <= columns {
		return []string{text}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case columnsOf(line)+1+columnsOf(word) <= columns:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
		for columnsOf(line) > columns {
			at := breakAt(line, columns)
			lines, line = append(lines, line[:at]), line[at:]
		}
	}
	return append(lines, line)
}

// breakAt returns how many bytes of text fit into so many columns, at least those of
// one character.
func breakAt(text string, columns int) int {
	used := 0
	for i, r := range text {
		if used += columnsOfRune(r); used > columns && i > 0 {
			return i
		}
	}
	return len(text)
}
