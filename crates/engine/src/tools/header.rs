//! The beginning of a call: everything up to its arguments.

use serde_json::Value;

/// Bytes within which the arguments of a call must begin: what is longer is no call.
pub(super) const MAX_HEADER_BYTES: usize = 4 << 10;

/// Keys that a call may begin with; `type` and `id` stand in those of Llama and Mistral.
const FIRST_KEYS: [&str; 5] = ["name", "arguments", "parameters", "type", "id"];

/// What a text that should begin with a call says so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// Too little to tell.
    Partial,
    /// It is no call.
    Bad,
    /// A call whose arguments begin at byte `at` with `{`.
    Ready { name: String, at: usize },
    /// A call that ends before byte `end`: its arguments came before its name, as a string, or not at all.
    Whole { name: String, arguments: String, end: usize },
}

/// Reads the beginning of a call of one of `names` from text that begins with `{`, or white space and `{`.
///
/// What is told of a text does not depend on how much of it is there: once it is not [`Header::Partial`], it stays.
pub(super) fn read(text: &str, names: &[String]) -> Header {
    let mut reader = Reader { text, at: 0, names, name: None, arguments: None };
    match reader.header() {
        Ok(header) => header,
        Err(Stop::Partial) if text.len() <= MAX_HEADER_BYTES => Header::Partial,
        Err(_) => Header::Bad,
    }
}

/// Why reading ends early.
enum Stop {
    Partial,
    Bad,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    names: &'a [String],
    name: Option<String>,
    arguments: Option<String>,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<Header, Stop> {
        self.expect(b'{')?;
        let mut first = true;
        loop {
            if !first && self.next()? == b'}' {
                self.at += 1;
                return self.whole();
            }
            if !first {
                self.expect(b',')?;
            }
            let key = self.string()?;
            // An object that begins with another key is an answer.
            if first && !FIRST_KEYS.contains(&key.as_str()) {
                return Err(Stop::Bad);
            }
            self.expect(b':')?;
            let value = self.next()?;
            match key.as_str() {
                "name" => {
                    let name = self.string()?;
                    if self.name.is_some() || !self.names.contains(&name) {
                        return Err(Stop::Bad);
                    }
                    self.name = Some(name);
                }
                "arguments" | "parameters" if self.arguments.is_some() => return Err(Stop::Bad),
                "arguments" | "parameters" => match (value, self.name.take()) {
                    (b'{', Some(name)) => return Ok(Header::Ready { name, at: self.at }),
                    (b'{' | b'"' | b'n', name) => {
                        self.name = name;
                        let start = self.at;
                        self.skip()?;
                        self.arguments = Some(self.text[start..self.at].to_owned());
                    }
                    _ => return Err(Stop::Bad),
                },
                _ => self.skip()?,
            }
            first = false;
        }
    }

    fn whole(&mut self) -> Result<Header, Stop> {
        let name = self.name.take().ok_or(Stop::Bad)?;
        let arguments = match self.arguments.take() {
            None => Value::Null,
            Some(text) => serde_json::from_str(&text).map_err(|_| Stop::Bad)?,
        };
        let arguments = match arguments {
            Value::Null => "{}".to_owned(),
            // Some models write the object as a string.
            Value::String(text) if serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()) => text,
            Value::Object(_) => arguments.to_string(),
            _ => return Err(Stop::Bad),
        };
        Ok(Header::Whole { name, arguments, end: self.at })
    }

    /// The next byte that is no white space.
    fn next(&mut self) -> Result<u8, Stop> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.byte()
    }

    fn byte(&self) -> Result<u8, Stop> {
        if self.at > MAX_HEADER_BYTES {
            return Err(Stop::Bad);
        }
        self.text.as_bytes().get(self.at).copied().ok_or(Stop::Partial)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        if self.next()? != byte {
            return Err(Stop::Bad);
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<String, Stop> {
        if self.next()? != b'"' {
            return Err(Stop::Bad);
        }
        let start = self.at;
        self.skip()?;
        serde_json::from_str(&self.text[start..self.at]).map_err(|_| Stop::Bad)
    }

    /// Goes past a value.
    fn skip(&mut self) -> Result<(), Stop> {
        self.next()?;
        let mut span = Span::default();
        loop {
            match span.push(self.byte()?) {
                Reach::Inside => self.at += 1,
                Reach::Last => {
                    self.at += 1;
                    return Ok(());
                }
                Reach::Beyond => return Ok(()),
            }
        }
    }
}

/// Finds the end of a JSON value, byte by byte, by its brackets and quotes.
#[derive(Debug, Default)]
pub(super) struct Span {
    depth: usize,
    in_string: bool,
    escaped: bool,
    started: bool,
}

/// Where a byte stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// In the value, which goes on.
    Inside,
    /// It is the last one.
    Last,
    /// The value ended before it, as numbers and words do.
    Beyond,
}

impl Span {
    /// Takes the next byte; the first one is the first of the value.
    pub(super) fn push(&mut self, byte: u8) -> Reach {
        let first = !std::mem::replace(&mut self.started, true);
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    return self.closed();
                }
                _ => {}
            }
            return Reach::Inside;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return self.closed();
            }
            b',' | b'}' | b']' | b':' if self.depth == 0 => return Reach::Beyond,
            byte if self.depth == 0 && !first && byte.is_ascii_whitespace() => return Reach::Beyond,
            _ => {}
        }
        Reach::Inside
    }

    fn closed(&self) -> Reach {
        if self.depth == 0 { Reach::Last } else { Reach::Inside }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let names = ["f".to_owned(), "g".to_owned()];
        let ready = |at| Header::Ready { name: "f".to_owned(), at };
        let whole = |arguments: &str, end| Header::Whole { name: "f".to_owned(), arguments: arguments.to_owned(), end };
        for (text, want) in [
            ("", Header::Partial),
            (" \n{ ", Header::Partial),
            (r#"{"na"#, Header::Partial),
            (r#"{"name": "f""#, Header::Partial),
            (r#"{"name": "f", "arguments": "#, Header::Partial),
            (r#"{"name": "f", "arguments": {"#, ready(27)),
            (r#"{"name": "f", "parameters": {"a": 1}}"#, ready(28)),
            (r#"{"type":"function","name":"f","parameters":{"#, ready(43)),
            ("{\n  \"name\" : \"f\" ,\n \"arguments\" : {", ready(34)),
            (r#"{"name": "f"}, "#, whole("{}", 13)),
            (r#"{"arguments": {"b": [1, "}"]}, "name": "f"}"#, whole(r#"{"b":[1,"}"]}"#, 43)),
            (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, whole(r#"{"a": 1}"#, 40)),
            (r#"{"name": "f", "arguments": null}"#, whole("{}", 32)),
            (r#"{"name": "f", "id": 7, "arguments": {"#, ready(36)),
            (r#"{"name": "h""#, Header::Bad),
            (r#"{"city": "#, Header::Bad),
            (r#"{"name": "f", "arguments": [1]}"#, Header::Bad),
            (r#"{"name": "f", "arguments": "no object"}"#, Header::Bad),
            (r#"{"name": "f" "arguments""#, Header::Bad),
            (r#"{}"#, Header::Bad),
            ("[", Header::Bad),
        ] {
            assert_eq!(read(text, &names), want, "{text}");
        }
        let long = format!(r#"{{"name": "f", "id": "{}", "arguments": {{}}}}"#, "x".repeat(MAX_HEADER_BYTES));
        assert_eq!(read(&long, &names), Header::Bad);
        assert_eq!(read(&long[..MAX_HEADER_BYTES + 1], &names), Header::Bad);
    }
}
