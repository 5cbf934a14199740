//! Methods of Python's strings, maps and lists: `x.strip()`, `x.items()`. Those that templates of models use; no
//! method changes what it is called on. Each charges for what it reads and makes before it does.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value as Jinja, filters};

use super::filters::pairs_of;
use super::meter::{Meter, is_map, key, plain, refused};
use super::text::{self, Side};

/// The name that a compiled template calls methods by; no template can spell it. The last argument is the method's.
pub(super) const METHOD: &str = "(method)";

/// The most bytes that one byte grows to when its case changes.
const CASE_GROWTH: usize = 3;

/// A call: what it is of, and its arguments.
struct Call<'a, 's> {
    state: &'a State<'s, 's>,
    name: &'a str,
    arguments: &'a [Jinja],
    named: Kwargs,
}

/// Calls the method that `values` ends with on its first, with the others.
pub(super) fn call(state: &State<'_, '_>, values: Rest<ValueOrKwargs>) -> Result<Jinja, Error> {
    let values = values.into_values();
    let [receiver, arguments @ .., name] = values.as_slice() else { return Err(refused("a method of nothing")) };
    let (arguments, named): (&[Jinja], Kwargs) = from_args(arguments)?;
    let name = name.as_str().unwrap_or_default();
    let call = Call { state, name, arguments, named };
    Meter::charge(state, |meter| {
        plain(receiver)?;
        arguments.iter().try_for_each(|argument| meter.walk(argument))
    })?;
    let result = match receiver.kind() {
        ValueKind::String => call.of_text(receiver.as_str().unwrap_or_default())?,
        ValueKind::Map => call.of_map(receiver)?,
        ValueKind::Seq => call.of_list(receiver)?,
        _ => None,
    };
    call.named.assert_all_used()?;
    result.ok_or_else(|| {
        let what = format!("a {} has no method `{name}` that templates may call", receiver.kind());
        Error::new(ErrorKind::UnknownMethod, what)
    })
}

impl Call<'_, '_> {
    /// The arguments, of which there are `N` at most.
    fn up_to<const N: usize>(&self) -> Result<[Option<&Jinja>; N], Error> {
        if self.arguments.len() > N {
            let what = format!("{}: {} arguments, of at most {N}", self.name, self.arguments.len());
            return Err(Error::new(ErrorKind::TooManyArguments, what));
        }
        Ok(std::array::from_fn(|index| self.arguments.get(index).filter(|value| !value.is_none())))
    }

    /// A string.
    fn text<'v>(&self, value: Option<&'v Jinja>) -> Result<&'v str, Error> {
        value.and_then(Jinja::as_str).ok_or_else(|| self.wrong("a string"))
    }

    /// A string that may be left out.
    fn optional_text<'v>(&self, value: Option<&'v Jinja>) -> Result<Option<&'v str>, Error> {
        value.map(|value| self.text(Some(value))).transpose()
    }

    /// A number that may be left out.
    fn optional_number(&self, value: Option<&Jinja>) -> Result<Option<i64>, Error> {
        value.map(|value| value.as_i64().ok_or_else(|| self.wrong("a number"))).transpose()
    }

    fn wrong(&self, wanted: &str) -> Error {
        Error::new(ErrorKind::InvalidOperation, format!("{}: {wanted} is wanted as an argument", self.name))
    }

    fn charge(&self, charge: impl FnOnce(&mut Meter) -> Result<(), Error>) -> Result<(), Error> {
        Meter::charge(self.state, charge)
    }

    /// `None` for a method that strings do not have.
    fn of_text(&self, text: &str) -> Result<Option<Jinja>, Error> {
        // Each method below reads the text twice at most, apart from what it charges for.
        self.charge(|meter| meter.make(0, text.len() / 2))?;
        Ok(Some(match self.name {
            "strip" => self.strip(text, Side::Both)?,
            "lstrip" => self.strip(text, Side::Start)?,
            "rstrip" => self.strip(text, Side::End)?,
            "split" => self.split(text, false)?,
            "rsplit" => self.split(text, true)?,
            "splitlines" => self.lines(text)?,
            "startswith" => self.any_affix(|affix| text.starts_with(affix))?,
            "endswith" => self.any_affix(|affix| text.ends_with(affix))?,
            "replace" => {
                let [old, new, count] = self.up_to()?;
                let count = self.optional_number(count)?;
                Jinja::from(text::replaced(self.state, text, self.text(old)?, self.text(new)?, count)?)
            }
            "upper" => self.changed(text, |text| text.to_uppercase())?,
            "lower" => self.changed(text, |text| text.to_lowercase())?,
            "title" => self.changed(text, |text| filters::title(text.into()))?,
            "capitalize" => self.changed(text, text::capitalized)?,
            "find" => self.found(text, |text, part| text.find(part))?,
            "rfind" => self.found(text, |text, part| text.rfind(part))?,
            "count" => {
                let [part] = self.up_to()?;
                Jinja::from(text.matches(self.text(part)?).count())
            }
            "join" => {
                let [items] = self.up_to()?;
                let items = super::filters::items_of(self.state, items.ok_or_else(|| self.wrong("a list"))?)?;
                Jinja::from(text::joined(self.state, text, &items)?)
            }
            "format" => self.format(text)?,
            "isdigit" | "isnumeric" | "isdecimal" => self.all(text, char::is_numeric)?,
            "isalpha" => self.all(text, char::is_alphabetic)?,
            "isalnum" => self.all(text, char::is_alphanumeric)?,
            "isspace" => self.all(text, char::is_whitespace)?,
            "isupper" => self.cased(text, char::is_uppercase, char::is_lowercase)?,
            "islower" => self.cased(text, char::is_lowercase, char::is_uppercase)?,
            _ => return Ok(None),
        }))
    }

    /// `None` for a method that maps do not have. An item of the map that has the method's name is none.
    fn of_map(&self, map: &Jinja) -> Result<Option<Jinja>, Error> {
        Ok(Some(match self.name {
            "get" => {
                let [name, default] = self.up_to()?;
                let name = name.cloned().unwrap_or(Jinja::from(()));
                key(&name)?;
                let found = map.as_object().and_then(|object| object.get_value(&name));
                found.or_else(|| default.cloned()).unwrap_or(Jinja::from(()))
            }
            "keys" => {
                let [] = self.up_to()?;
                Jinja::from(pairs_of(self.state, map)?.into_iter().map(|(key, _)| key).collect::<Vec<_>>())
            }
            "values" => {
                let [] = self.up_to()?;
                Jinja::from(pairs_of(self.state, map)?.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
            }
            "items" if is_map(map) => {
                let [] = self.up_to()?;
                let pairs = pairs_of(self.state, map)?.into_iter();
                Jinja::from(pairs.map(|(key, value)| Tuple::from([key, value]).into()).collect::<Vec<Jinja>>())
            }
            _ => return Ok(None),
        }))
    }

    /// `None` for a method that lists do not have.
    fn of_list(&self, list: &Jinja) -> Result<Option<Jinja>, Error> {
        Ok(match self.name {
            "count" => {
                let [wanted] = self.up_to()?;
                let wanted = wanted.cloned().unwrap_or(Jinja::from(()));
                self.charge(|meter| {
                    meter.make(list.len().unwrap_or(0), 0)?;
                    meter.search(&wanted, list)
                })?;
                Some(Jinja::from(list.try_iter()?.filter(|item| *item == wanted).count()))
            }
            _ => None,
        })
    }

    fn strip(&self, text: &str, side: Side) -> Result<Jinja, Error> {
        let [chars] = self.up_to()?;
        text::strip(self.state, text, self.optional_text(chars)?, side)
    }

    fn changed(&self, text: &str, change: impl Fn(&str) -> String) -> Result<Jinja, Error> {
        let [] = self.up_to()?;
        self.charge(|meter| meter.make(0, text.len().saturating_mul(CASE_GROWTH)))?;
        Ok(Jinja::from(change(text)))
    }

    /// `split(sep=none, maxsplit=-1)`, and `rsplit`.
    fn split(&self, text: &str, from_end: bool) -> Result<Jinja, Error> {
        let [separator, most] = self.up_to()?;
        let separator = match separator {
            Some(separator) => Some(self.text(Some(separator))?),
            None => self.named.get::<Option<&str>>("sep")?,
        };
        let most = match most {
            Some(most) => self.optional_number(Some(most))?,
            None => self.named.get::<Option<i64>>("maxsplit")?,
        };
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
        if separator == Some("") {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("{}: an empty separator", self.name)));
        }
        let pieces = match separator {
            Some(separator) => text.matches(separator).take(most).count().saturating_add(1),
            None => text.split_whitespace().take(most).count().saturating_add(1),
        };
        self.charge(|meter| meter.make(pieces, text.len()))?;
        let mut pieces: Vec<&str> = match (separator, from_end) {
            (Some(separator), false) => text.splitn(most.saturating_add(1), separator).collect(),
            (Some(separator), true) => text.rsplitn(most.saturating_add(1), separator).collect(),
            (None, false) => words(text, most),
            (None, true) => words_from_end(text, most),
        };
        if from_end {
            pieces.reverse();
        }
        Ok(Jinja::from(pieces.into_iter().map(Jinja::from).collect::<Vec<_>>()))
    }

    /// `splitlines(keepends=false)`.
    fn lines(&self, text: &str) -> Result<Jinja, Error> {
        let [keep] = self.up_to()?;
        let keep = keep.is_some_and(Jinja::is_true);
        self.charge(|meter| meter.make(text.matches('\n').count() + 1, text.len()))?;
        let lines = text.split_inclusive('\n');
        let line = |line| Jinja::from(if keep { line } else { without_end(line) });
        Ok(Jinja::from(lines.map(line).collect::<Vec<_>>()))
    }

    /// Whether one of the affixes fits: a string, or a list of strings.
    fn any_affix(&self, fits: impl Fn(&str) -> bool) -> Result<Jinja, Error> {
        let [affix] = self.up_to()?;
        let affix = affix.ok_or_else(|| self.wrong("a string"))?;
        if let Some(affix) = affix.as_str() {
            return Ok(Jinja::from(fits(affix)));
        }
        if affix.kind() != ValueKind::Seq {
            return Err(self.wrong("a string or a list of strings"));
        }
        for affix in affix.try_iter()? {
            if fits(self.text(Some(&affix))?) {
                return Ok(Jinja::from(true));
            }
        }
        Ok(Jinja::from(false))
    }

    /// The position of a part in characters, or -1.
    fn found(&self, text: &str, find: fn(&str, &str) -> Option<usize>) -> Result<Jinja, Error> {
        let [part] = self.up_to()?;
        let at = find(text, self.text(part)?);
        Ok(at.map_or(Jinja::from(-1), |at| Jinja::from(text[..at].chars().count())))
    }

    /// `{}` and `{0}` replaced by arguments, `{{` and `}}` by braces. Widths and other formats are refused.
    fn format(&self, text: &str) -> Result<Jinja, Error> {
        let mut output = String::new();
        let mut rest = text;
        let mut next = 0;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            output.push_str(before);
            if brace.starts_with("{{") || brace.starts_with("}}") {
                output.push_str(&brace[..1]);
                rest = &brace[2..];
                continue;
            }
            let field = brace.strip_prefix('{').and_then(|field| field.split_once('}'));
            let Some((field, after)) = field else { return Err(self.wrong("a format whose braces are paired")) };
            let index = match field {
                "" => next,
                digits if digits.len() <= 4 => {
                    digits.parse().map_err(|_| refused("format: a field that is no number"))?
                }
                _ => return Err(refused("format: a field that is no number")),
            };
            next = index + 1;
            let value = self.arguments.get(index).ok_or_else(|| self.wrong("a value for each field"))?;
            self.charge(|meter| {
                meter.make(1, value.as_str().map_or(0, str::len))?;
                meter.walk(value)
            })?;
            let _ = write!(output, "{value}");
            rest = after;
        }
        output.push_str(rest);
        Ok(Jinja::from(output))
    }

    fn all(&self, text: &str, is: impl Fn(char) -> bool) -> Result<Jinja, Error> {
        let [] = self.up_to()?;
        Ok(Jinja::from(!text.is_empty() && text.chars().all(is)))
    }

    fn cased(&self, text: &str, is: impl Fn(char) -> bool, is_not: impl Fn(char) -> bool) -> Result<Jinja, Error> {
        let [] = self.up_to()?;
        Ok(Jinja::from(text.chars().any(is) && !text.chars().any(is_not)))
    }
}

/// The line without the one line end that it has.
fn without_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// Words of `text`, and after `most` of them all that is left, as Python's `split` does without a separator.
fn words(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while words.len() < most && !rest.is_empty() {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    // What is left keeps the white space within it and, as in Python, at its end.
    if !rest.is_empty() {
        words.push(rest);
    }
    words
}

/// As [`words`], from the end of `text`, the last first.
fn words_from_end(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_end();
    while words.len() < most && !rest.is_empty() {
        let before = rest.trim_end_matches(|c: char| !c.is_whitespace());
        words.push(&rest[before.len()..]);
        rest = before.trim_end();
    }
    if !rest.is_empty() {
        words.push(rest);
    }
    words
}
