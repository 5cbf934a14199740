//! SPDX licence expressions: `MIT OR (Apache-2.0 AND ISC)`.
//!
//! The grammar: <https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/>. `WITH` binds tighter than `AND`,
//! and that tighter than `OR`. The slash of older manifests (`MIT/Apache-2.0`) means `OR`.

/// Deeper expressions than this are refused rather than followed.
const MOST_DEPTH: usize = 16;

/// Why an expression has no meaning.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A term is missing at the end, or a parenthesis is not closed.
    #[error("ends too early")]
    EndsEarly,
    /// A word where another was due.
    #[error("{0:?} is out of place")]
    OutOfPlace(String),
    /// Parentheses within parentheses, more than [`MOST_DEPTH`].
    #[error("is nested too deeply")]
    Deep,
}

/// Whether some choice among the licences of `expression` needs only terms for which `allowed` holds. A licence with
/// an exception is one term: `Apache-2.0 WITH LLVM-exception`.
pub(crate) fn permits(expression: &str, allowed: impl Fn(&str) -> bool) -> Result<bool, Malformed> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut parser = Parser { words: spaced.split_whitespace().collect(), next: 0, allowed };
    let value = parser.any(0)?;
    match parser.peek() {
        Some(word) => Err(Malformed::OutOfPlace(word.to_owned())),
        None => Ok(value),
    }
}

struct Parser<'a, F> {
    words: Vec<&'a str>,
    next: usize,
    allowed: F,
}

impl<'a, F: Fn(&str) -> bool> Parser<'a, F> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).copied()
    }

    /// Takes the next word if it is `word`.
    fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.next += usize::from(found);
        found
    }

    fn any(&mut self, depth: usize) -> Result<bool, Malformed> {
        let mut value = self.all(depth)?;
        while self.take("OR") {
            value |= self.all(depth)?;
        }
        Ok(value)
    }

    fn all(&mut self, depth: usize) -> Result<bool, Malformed> {
        let mut value = self.term(depth)?;
        while self.take("AND") {
            value &= self.term(depth)?;
        }
        Ok(value)
    }

    fn term(&mut self, depth: usize) -> Result<bool, Malformed> {
        if depth > MOST_DEPTH {
            return Err(Malformed::Deep);
        }
        if self.take("(") {
            let value = self.any(depth + 1)?;
            return match self.peek() {
                _ if self.take(")") => Ok(value),
                Some(word) => Err(Malformed::OutOfPlace(word.to_owned())),
                None => Err(Malformed::EndsEarly),
            };
        }
        let license = self.name()?;
        if self.take("WITH") {
            let exception = self.name()?;
            return Ok((self.allowed)(&format!("{license} WITH {exception}")));
        }
        Ok((self.allowed)(license))
    }

    /// A licence or an exception.
    fn name(&mut self) -> Result<&'a str, Malformed> {
        match self.peek() {
            None => Err(Malformed::EndsEarly),
            Some(word @ ("AND" | "OR" | "WITH" | "(" | ")")) => Err(Malformed::OutOfPlace(word.to_owned())),
            Some(word) => {
                self.next += 1;
                Ok(word)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(expression: &str) -> Result<bool, Malformed> {
        permits(expression, |term| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&term))
    }

    #[test]
    fn meaning() {
        for (expression, expected) in [
            ("MIT", true),
            ("Apache-2.0", false),
            ("Apache-2.0 OR MIT", true),
            ("Apache-2.0/MIT", true),
            ("Apache-2.0 / GPL-2.0-only", false),
            ("MIT AND ISC", true),
            ("MIT AND Apache-2.0", false),
            // AND binds tighter than OR
            ("MIT OR ISC AND Apache-2.0", true),
            ("(MIT OR ISC) AND Apache-2.0", false),
            ("(MIT OR Apache-2.0) AND ISC", true),
            ("((MIT))", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
            ("Apache-2.0 WITH LLVM-exception AND GPL-2.0-only", false),
        ] {
            assert_eq!(on(expression), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn malformed() {
        let out_of_place = |word: &str| Malformed::OutOfPlace(word.to_owned());
        for (expression, expected) in [
            ("", Malformed::EndsEarly),
            ("MIT OR", Malformed::EndsEarly),
            ("(MIT", Malformed::EndsEarly),
            ("MIT WITH", Malformed::EndsEarly),
            ("MIT ISC", out_of_place("ISC")),
            ("MIT)", out_of_place(")")),
            ("(MIT ISC)", out_of_place("ISC")),
            ("OR MIT", out_of_place("OR")),
            ("()", out_of_place(")")),
        ] {
            assert_eq!(on(expression), Err(expected), "{expression}");
        }
        assert_eq!(on(&"(".repeat(100_000)), Err(Malformed::Deep));
    }
}
