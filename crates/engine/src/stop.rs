//! Stop strings: text is held back while it could be the beginning of one.

/// Watches streamed text for strings that end it.
#[derive(Debug)]
pub(crate) struct Stops {
    strings: Vec<String>,
    held: String,
}

/// What a piece of text leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Text that can be shown.
    pub(crate) text: String,
    /// Whether a stop string was met: it and what follows are dropped.
    pub(crate) stopped: bool,
}

impl Stops {
    pub(crate) fn new(strings: &[String]) -> Stops {
        Stops { strings: strings.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece and lets pass what cannot belong to a stop string any more.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        if let Some(at) = self.strings.iter().filter_map(|stop| self.held.find(stop)).min() {
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Passed { text, stopped: true };
        }
        let keep = self.strings.iter().map(|stop| self.longest_beginning(stop)).max().unwrap_or(0);
        let text = self.held.drain(..self.held.len() - keep).collect();
        Passed { text, stopped: false }
    }

    /// What is still held when the text ends.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that begin `stop`.
    fn longest_beginning(&self, stop: &str) -> usize {
        let longest = self.held.len().min(stop.len() - 1);
        (1..=longest)
            .rev()
            .find(|&len| stop.as_bytes().starts_with(&self.held.as_bytes()[self.held.len() - len..]))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = Stops::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out = String::new();
        for piece in pieces {
            let passed = watch.push(piece);
            out += &passed.text;
            if passed.stopped {
                return (out, true);
            }
        }
        (out + &watch.finish(), false)
    }

    #[test]
    fn across_pieces_and_with_false_starts() {
        for (stops, pieces, want) in [
            (vec!["END"], vec!["a E", "N", "D b"], ("a ", true)),
            (vec!["END"], vec!["E", "NE", "ND"], ("EN", true)),
            (vec!["END"], vec!["E", "N", "x"], ("ENx", false)),
            (vec!["\n\n", "x"], vec!["a\n", "b\n", "\nc"], ("a\nb", true)),
            (vec!["é!"], vec!["caf", "é", "?"], ("café?", false)),
            (vec![], vec!["all"], ("all", false)),
            (vec!["aab"], vec!["aa", "ab"], ("a", true)),
        ] {
            let (text, stopped) = run(&stops, &pieces);
            assert_eq!((text.as_str(), stopped), want, "{stops:?} {pieces:?}");
        }
    }
}
