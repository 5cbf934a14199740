//! Calls read from streamed text.

use super::header::{self, Header, Reach, Span};
use super::{Tool, ToolFormat};

/// A step of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// More text.
    Text(String),
    /// A call begins.
    CallStart {
        /// How many calls came before it.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: JSON text as the model wrote it.
    CallArguments {
        /// The call.
        index: usize,
        /// The piece.
        text: String,
    },
    /// A call has ended.
    CallEnd {
        /// The call.
        index: usize,
        /// Whether its JSON object was closed: not so where the answer ended within it, or went on as no JSON does.
        whole: bool,
    },
}

/// Reads text and calls from an answer as it comes.
///
/// Joined, the deltas do not depend on how the text is cut. Text is held back only while it could begin a call, and
/// white space until it is known not to stand beside one: there it is dropped. A call that is none after all (unknown
/// name, no JSON, other keys) is text. [`Delta::CallStart`] comes once the name is known and the arguments begin; from
/// there on the arguments pass as they are, to the bracket that ends them; [`Delta::CallEnd`] comes once the object
/// around them is closed, or cannot be any more.
///
/// Markers that are control tokens (`[TOOL_CALLS]`, `<|python_tag|>`) are understood where the text shows them and, at
/// the beginning of an answer, where it does not. There models of [`ToolFormat::Hermes`] also write calls without any
/// marker, bare or in a block of code (Qwen 2.5 Coder), and those are calls too, unless [`Parser::marked`] says
/// otherwise.
#[derive(Debug)]
pub struct Parser {
    format: ToolFormat,
    names: Vec<String>,
    /// Whether JSON without a marker is an answer.
    marked: bool,
    /// Whether the last call stands in a block of code that is not closed.
    fenced: bool,
    state: State,
    /// Text not yet told.
    held: String,
    /// Calls begun.
    calls: usize,
    /// Whether nothing but white space was told or dropped since the beginning or the last call.
    fresh: bool,
}

#[derive(Debug)]
enum State {
    /// Outside of calls.
    Text,
    /// `held` begins with `prefix` bytes of what announces a call.
    Header { prefix: usize },
    /// In the arguments of the last call.
    Arguments(Span),
    /// After the arguments: what else the object holds.
    Tail(Option<Span>),
}

/// What stands at the beginning of a text.
enum Opening {
    /// A call is announced by so many bytes.
    Call(usize),
    /// It may be.
    Partial,
    /// It is not.
    None,
}

impl Parser {
    /// A parser for the beginning of an answer of a model that was offered `tools`.
    pub fn new(format: ToolFormat, tools: &[Tool]) -> Parser {
        let names = tools.iter().map(|tool| tool.name.clone()).collect();
        let (marked, fenced) = (false, false);
        Parser { format, names, marked, fenced, state: State::Text, held: String::new(), calls: 0, fresh: true }
    }

    /// Takes JSON without a marker for an answer: where one that calls nothing is held to a format
    /// ([`ToolFormat::takes_answer`]), an object with the name of a tool may be just that.
    #[must_use]
    pub fn marked(mut self) -> Parser {
        self.marked = true;
        self
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Vec<Delta> {
        self.held.push_str(piece);
        let mut deltas = Vec::new();
        while self.step(&mut deltas) {}
        deltas
    }

    /// The answer has ended: what is held back is text, or what stands beside a call and is dropped.
    pub fn finish(mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        match self.state {
            State::Text | State::Header { .. } => {
                let mut rest = std::mem::take(&mut self.held);
                if self.follows_call() {
                    // A fence was held for what might have followed it; every other close was dropped as it came.
                    let is_fence = rest.trim() == FENCE && self.closing(&rest).is_some();
                    if rest.trim().is_empty() || is_fence {
                        rest.clear();
                    }
                }
                self.tell(rest, &mut deltas);
            }
            State::Arguments(_) | State::Tail(_) => {
                deltas.push(Delta::CallEnd { index: self.calls - 1, whole: false });
            }
        }
        deltas
    }

    /// Whether nothing but what belongs to it came since the last call.
    fn follows_call(&self) -> bool {
        self.fresh && self.calls > 0
    }

    fn tell(&mut self, text: String, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            self.fresh = false;
            match deltas.last_mut() {
                Some(Delta::Text(before)) => before.push_str(&text),
                _ => deltas.push(Delta::Text(text)),
            }
        }
    }

    /// Goes as far as one state allows; `false` where more text is needed.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> bool {
        match &mut self.state {
            State::Text => self.text(deltas),
            State::Header { prefix } => {
                let prefix = *prefix;
                self.header(prefix, deltas)
            }
            State::Arguments(span) => {
                let end = self.held.bytes().position(|byte| span.push(byte) != Reach::Inside);
                let text: String = self.held.drain(..end.map_or(self.held.len(), |last| last + 1)).collect();
                let index = self.calls - 1;
                if !text.is_empty() {
                    deltas.push(Delta::CallArguments { index, text });
                }
                if end.is_some() {
                    self.state = State::Tail(None);
                }
                end.is_some()
            }
            State::Tail(_) => self.tail(deltas),
        }
    }

    /// Tells what cannot begin a call.
    fn text(&mut self, deltas: &mut Vec<Delta>) -> bool {
        if self.follows_call() {
            match self.closing(&self.held) {
                Some(Some(end)) => {
                    self.fenced &= !self.held[..end].ends_with(FENCE);
                    self.held.drain(..end);
                    // Another may follow, in this piece as in the next.
                    return true;
                }
                Some(None) => return false,
                None => {}
            }
        }
        if self.fresh {
            match self.opening() {
                Opening::Call(prefix) => {
                    self.state = State::Header { prefix };
                    return true;
                }
                Opening::Partial => return false,
                Opening::None => {}
            }
        }
        let marker = self.format.marker();
        let found = marker.and_then(|marker| Some((self.held.find(marker)?, marker.len())));
        let beginning = marker.map_or(0, |marker| longest_beginning(&self.held, marker));
        // White space before a call is dropped with what announces it.
        let certain = self.held[..found.map_or(self.held.len() - beginning, |(at, _)| at)].trim_end().len();
        let text = self.held.drain(..certain).collect();
        self.tell(text, deltas);
        if let Some((at, len)) = found {
            self.state = State::Header { prefix: at - certain + len };
        }
        found.is_some()
    }

    /// Whether a call begins here without a marker, or with one.
    fn opening(&self) -> Opening {
        let blank = self.held.len() - self.held.trim_start().len();
        let text = &self.held[blank..];
        if text.is_empty() {
            return Opening::Partial;
        }
        // What may stand before the brace.
        let leads: &[&str] = match self.format {
            // Where the marker is a token that the text does not show, a line end follows it, and no answer begins so.
            ToolFormat::Hermes if self.marked && blank > 0 => &["<tool_call>", ""],
            ToolFormat::Hermes if self.marked => &["<tool_call>"],
            ToolFormat::Hermes if self.calls > 0 => &["<tool_call>", "```json\n", ""],
            ToolFormat::Hermes => &["<tool_call>", "```json\n", "```\n", ""],
            ToolFormat::Mistral if self.calls > 0 => &["[TOOL_CALLS]", ","],
            ToolFormat::Mistral => &["[TOOL_CALLS]", "["],
            ToolFormat::Llama | ToolFormat::Prompted { .. } if self.calls > 0 => {
                &["<|python_tag|>", "```json\n", ";", ",", ""]
            }
            ToolFormat::Llama | ToolFormat::Prompted { .. } => {
                &["<|python_tag|>", "```json\n", "```tool_code\n", "```tool_call\n", "```\n", ""]
            }
        };
        let mut partial = false;
        for lead in leads {
            if let Some(rest) = text.strip_prefix(lead) {
                let is_marker = lead.len() > 1 && !lead.starts_with('`');
                let blanks = rest.len() - rest.trim_start().len();
                // Mistral's list stands between the marker and the first call.
                match rest.trim_start().as_bytes().first() {
                    Some(b'{') => return Opening::Call(blank + lead.len() + blanks),
                    _ if is_marker => return Opening::Call(blank + lead.len()),
                    None => partial = true,
                    Some(_) => {}
                }
            } else if lead.starts_with(text) {
                partial = true;
            }
        }
        if partial { Opening::Partial } else { Opening::None }
    }

    /// Bytes of what closes a call, at the beginning of `text`; `Some(None)` where more text must tell.
    fn closing(&self, text: &str) -> Option<Option<usize>> {
        let closes: &[&str] = match self.format {
            ToolFormat::Hermes if self.fenced => &[FENCE, "</tool_call>"],
            ToolFormat::Hermes => &["</tool_call>"],
            ToolFormat::Mistral => &["]"],
            ToolFormat::Llama | ToolFormat::Prompted { .. } => &[FENCE],
        };
        closes.iter().find_map(|close| closing(close, text))
    }

    /// Reads up to the arguments of a call.
    fn header(&mut self, prefix: usize, deltas: &mut Vec<Delta>) -> bool {
        let mut start = prefix;
        let after = &self.held[prefix..];
        if self.format == ToolFormat::Mistral && self.held[..prefix].ends_with("[TOOL_CALLS]") {
            let list = after.trim_start();
            if list.is_empty() {
                return false;
            }
            if list.starts_with('[') {
                start = self.held.len() - list.len() + 1;
            }
        }
        let header = header::read(&self.held[start..], &self.names);
        if matches!(header, Header::Ready { .. } | Header::Whole { .. }) {
            self.fenced |= self.held[..prefix].contains(FENCE);
        }
        match header {
            Header::Partial => return false,
            Header::Bad => {
                // It was text, up to where something else may begin.
                let lead = if prefix == 0 { self.first_len() } else { prefix };
                let text: String = self.held.drain(..lead).collect();
                self.tell(text, deltas);
                self.fresh = false;
                self.state = State::Text;
            }
            Header::Ready { name, at } => {
                self.held.drain(..start + at);
                deltas.push(Delta::CallStart { index: self.calls, name });
                self.calls += 1;
                self.fresh = true;
                self.state = State::Arguments(Span::default());
            }
            Header::Whole { name, arguments, end } => {
                self.held.drain(..start + end);
                let index = self.calls;
                deltas.push(Delta::CallStart { index, name });
                deltas.push(Delta::CallArguments { index, text: arguments });
                deltas.push(Delta::CallEnd { index, whole: true });
                self.calls += 1;
                self.fresh = true;
                self.state = State::Text;
            }
        }
        true
    }

    fn first_len(&self) -> usize {
        self.held.chars().next().map_or(0, char::len_utf8)
    }

    /// Drops the keys after the arguments, and the brace that ends the call.
    fn tail(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let State::Tail(value) = &mut self.state else { return false };
        let mut taken = 0;
        let mut ends = false;
        let mut whole = false;
        for byte in self.held.bytes() {
            match value {
                Some(span) => match span.push(byte) {
                    Reach::Inside => taken += 1,
                    Reach::Last => {
                        taken += 1;
                        *value = None;
                    }
                    Reach::Beyond => {
                        *value = None;
                        ends = !matches!(byte, b',' | b'}') && !byte.is_ascii_whitespace();
                        taken += usize::from(!ends);
                        whole = byte == b'}';
                        ends |= whole;
                    }
                },
                None => match byte {
                    b'}' => {
                        taken += 1;
                        whole = true;
                        ends = true;
                    }
                    b',' | b':' => taken += 1,
                    byte if byte.is_ascii_whitespace() => taken += 1,
                    b'"' | b'0'..=b'9' | b'-' | b't' | b'f' | b'n' | b'{' | b'[' => {
                        let mut span = Span::default();
                        span.push(byte);
                        *value = Some(span);
                        taken += 1;
                    }
                    // The object was not ended.
                    _ => ends = true,
                },
            }
            if ends {
                break;
            }
        }
        self.held.drain(..taken);
        if ends {
            deltas.push(Delta::CallEnd { index: self.calls - 1, whole });
            self.state = State::Text;
        }
        ends
    }
}

/// What closes a block of code.
const FENCE: &str = "```";

/// Bytes up to the end of `close`, at the beginning of `text`; `Some(None)` where more text must tell.
fn closing(close: &str, text: &str) -> Option<Option<usize>> {
    let trimmed = text.trim_start();
    match trimmed.strip_prefix(close) {
        // A fence that is followed by a word opens another call.
        Some("") if close == FENCE => Some(None),
        Some(rest) if close == FENCE && rest.starts_with(|c: char| c.is_ascii_alphabetic()) => None,
        Some(rest) => Some(Some(text.len() - rest.len())),
        None if close.starts_with(trimmed) => Some(None),
        None => None,
    }
}

/// Bytes at the end of `text` that begin `marker`.
fn longest_beginning(text: &str, marker: &str) -> usize {
    let longest = text.len().min(marker.len() - 1);
    (1..=longest).rev().find(|&len| marker.as_bytes().starts_with(&text.as_bytes()[text.len() - len..])).unwrap_or(0)
}
