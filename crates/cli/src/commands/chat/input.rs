//! Messages from a terminal, with editing and history, or from a pipe.

use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use rustyline::{DefaultEditor, error::ReadlineError};

use crate::config::state_file;

/// Where messages come from.
pub(super) struct Input {
    lines: Lines,
}

enum Lines {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Pipe,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A message, never empty.
    Message(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// The end of the input.
    End,
}

/// One line, as typed.
enum Line {
    Text(String),
    Interrupted,
    End,
}

impl Input {
    /// Standard input: with an editor and the history of former conversations where it is a terminal.
    ///
    /// # Errors
    /// Where the terminal cannot be set up.
    pub(super) fn open() -> anyhow::Result<Input> {
        if !io::stdin().is_terminal() {
            return Ok(Input { lines: Lines::Pipe });
        }
        let mut editor = Box::new(DefaultEditor::new().context("cannot set up the terminal")?);
        let history = state_file("chat_history");
        if let Some(path) = &history {
            // The first conversation has no history to read.
            let _ = editor.load_history(path);
        }
        Ok(Input { lines: Lines::Terminal { editor, history } })
    }

    /// Whether a person types.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self.lines, Lines::Terminal { .. })
    }

    /// The next message.
    ///
    /// # Errors
    /// Where the input cannot be read or is not UTF-8.
    pub(super) fn read(&mut self) -> anyhow::Result<Read> {
        let mut assembly = Assembly::default();
        loop {
            let line = match self.line(if assembly.is_empty() { "> " } else { "... " })? {
                Line::Text(line) => line,
                Line::Interrupted => return Ok(Read::Interrupted),
                // What was begun when the input ends is a message too.
                Line::End => return Ok(self.remembered(assembly.text()).map_or(Read::End, Read::Message)),
            };
            if !assembly.push(&line) {
                continue;
            }
            if let Some(text) = self.remembered(std::mem::take(&mut assembly).text()) {
                return Ok(Read::Message(text));
            }
        }
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match &mut self.lines {
            Lines::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Lines::Pipe => {
                let mut line = String::new();
                match io::stdin().lock().read_line(&mut line).context("cannot read standard input")? {
                    0 => Ok(Line::End),
                    _ => Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned())),
                }
            }
        }
    }

    /// Adds a message to the history; `None` for an empty one.
    fn remembered(&mut self, text: String) -> Option<String> {
        if text.trim().is_empty() {
            return None;
        }
        if let Lines::Terminal { editor, history } = &mut self.lines {
            // A history that cannot be kept is no reason to stop talking. Written now, so that a crash loses nothing.
            let _ = editor.add_history_entry(&text);
            if let Some(path) = history {
                let _ = editor.save_history(path);
            }
        }
        Some(text)
    }
}

const QUOTES: &str = "\"\"\"";

/// Lines on their way to a message.
#[derive(Debug, Default)]
struct Assembly {
    lines: Vec<String>,
    quoted: bool,
}

impl Assembly {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.quoted
    }

    /// Takes a line; true where the message is complete.
    fn push(&mut self, line: &str) -> bool {
        if self.quoted {
            return self.push_quoted(line);
        }
        if self.lines.is_empty()
            && let Some(rest) = line.trim_start().strip_prefix(QUOTES)
        {
            self.quoted = true;
            // """all on one line"""
            return !rest.is_empty() && self.push_quoted(rest);
        }
        match line.strip_suffix('\\') {
            Some(line) => {
                self.lines.push(line.to_owned());
                false
            }
            None => {
                self.lines.push(line.to_owned());
                true
            }
        }
    }

    fn push_quoted(&mut self, line: &str) -> bool {
        match line.trim_end().strip_suffix(QUOTES) {
            Some("") => true,
            Some(line) => {
                self.lines.push(line.to_owned());
                true
            }
            None => {
                self.lines.push(line.to_owned());
                false
            }
        }
    }

    fn text(self) -> String {
        self.lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_messages() {
        for (lines, want) in [
            (&["hello"][..], Some("hello")),
            (&["one \\", "two"], Some("one \ntwo")),
            (&["one\\", "two\\"], None),
            (&["\"\"\"", "a", "", "b", "\"\"\""], Some("a\n\nb")),
            (&["\"\"\"a", "b\"\"\""], Some("a\nb")),
            (&["\"\"\"a\"\"\""], Some("a")),
            (&["\"\"\"", "a\\", "/quit"], None),
            (&["say \"\"\""], Some("say \"\"\"")),
        ] {
            let mut assembly = Assembly::default();
            let complete: Vec<bool> = lines.iter().map(|line| assembly.push(line)).collect();
            assert_eq!(complete.last() == Some(&true), want.is_some(), "{lines:?}");
            assert!(complete[..lines.len() - 1].iter().all(|complete| !complete), "{lines:?}");
            if let Some(want) = want {
                assert_eq!(assembly.text(), want);
            }
        }
    }
}
