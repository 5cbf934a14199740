//! An answer in the making: from logits to tokens to text.

use std::{collections::VecDeque, sync::Arc};

use text::{Detokenizer, Tokenizer};

use crate::{
    Constraint, EngineError, FinishReason, Generation, Metrics, Request, Sampler, TokenLogprob,
    logprobs::token_logprob, sampler::largest, stop::Stops,
};

/// The state of one answer between steps.
pub(crate) struct Answer {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    detokenizer: Detokenizer<Arc<Tokenizer>>,
    stops: Stops,
    /// Whether one was met.
    stopped: bool,
    logprobs: Option<usize>,
    max_tokens: usize,
    ignore_end: bool,
    chat: bool,
    /// What was shown.
    text: String,
    /// Bytes of text that the tokens spell, shown or not.
    spelt: usize,
    /// Tokens whose text is not all shown, each with the length that the text shown must reach.
    held: VecDeque<(usize, TokenLogprob)>,
    pub(crate) ids: Vec<u32>,
    /// Steps that tokens were picked from: as many as tokens, where nothing that was drafted was accepted.
    pub(crate) steps: usize,
    pub(crate) metrics: Metrics,
}

/// What one more token led to.
pub(crate) struct Picked {
    pub(crate) shown: Shown,
    /// Why the answer ends here.
    pub(crate) finish: Option<FinishReason>,
}

/// More of the answer, now certain.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) text: String,
    /// The tokens that end within it, where asked for.
    pub(crate) logprobs: Vec<TokenLogprob>,
}

impl Answer {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, request: &Request) -> Answer {
        let detokenizer = Detokenizer::new(tokenizer.clone());
        Answer {
            sampler: Sampler::new(request.sampler.clone(), &request.prompt),
            constraint: request.grammar.as_ref().map(crate::Grammar::start),
            detokenizer: if request.chat { detokenizer } else { detokenizer.continuing() },
            stops: Stops::new(&request.stop),
            stopped: false,
            logprobs: request.logprobs,
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            ignore_end: request.ignore_end,
            chat: request.chat,
            text: String::new(),
            spelt: 0,
            held: VecDeque::new(),
            ids: Vec::new(),
            steps: 0,
            metrics: Metrics { prompt_tokens: request.prompt.len(), ..Metrics::default() },
            tokenizer,
        }
    }

    /// Further tokens that it wants at most.
    pub(crate) fn wants(&self) -> usize {
        self.max_tokens.saturating_sub(self.ids.len())
    }

    /// How many of the largest logits its next token is picked from, where up to `ahead` tokens are picked before; 0
    /// where it takes all.
    pub(crate) fn top(&self, ahead: usize) -> usize {
        if self.logprobs.is_some() || self.constraint.is_some() { 0 } else { self.sampler.top(ahead) }
    }

    /// Picks the next token from the logits of token `position - 1`; all but those of the ids `kept` are minus infinity
    /// where there are any. `room` is whether the context has room for it.
    pub(crate) fn pick(
        &mut self,
        kept: &[u32],
        logits: &mut [f32],
        position: usize,
        room: bool,
    ) -> Result<Picked, EngineError> {
        // The model's own distribution, before anything below changes it.
        let own = self.logprobs.map(|_| logits.to_vec());
        if let Some(constraint) = &mut self.constraint {
            // The mask would hide what the sampler looks for.
            if largest(logits).is_nan() {
                return Err(EngineError::NotANumber { position, damage: None });
            }
            constraint.mask(logits)?;
        }
        let bans_any = self.sampler.bans_any(logits);
        let id = self.sampler.pick_among(kept, logits).ok_or_else(|| nothing_left(logits, bans_any, position))?;
        self.ids.push(id);
        let bytes = |id: u32| self.tokenizer.token_bytes(id).unwrap_or_default();
        let logprob = own.map(|own| token_logprob(&own, id, self.logprobs.unwrap_or(0), &bytes));
        if !self.ignore_end && self.tokenizer.end_tokens().contains(&id) {
            // Nothing can follow what was held back. The tokens of a completion include its end, on which evaluation
            // harnesses count; those of a chat do not.
            let mut shown = self.flush();
            shown.logprobs.extend(logprob.filter(|_| !self.chat));
            return Ok(Picked { shown, finish: Some(FinishReason::Stop) });
        }
        let piece = self.detokenizer.push(id);
        self.spelt += piece.len();
        if let Some(logprob) = logprob {
            // A token that ends within a character is shown with that character.
            let is_cut = !self.detokenizer.clone().finish().is_empty();
            self.held.push_back((self.spelt + usize::from(is_cut), logprob));
        }
        let (mut shown, stopped) = self.pass(&piece);
        let constraint_ends = match &mut self.constraint {
            Some(constraint) => {
                constraint.accept(id)?;
                constraint.must_stop()
            }
            None => false,
        };
        let finish = if stopped || constraint_ends {
            Some(FinishReason::Stop)
        } else if self.ids.len() >= self.max_tokens {
            Some(FinishReason::Length)
        } else if !room {
            Some(FinishReason::Context)
        } else {
            None
        };
        if finish.is_some() && !stopped {
            let rest = self.flush();
            shown.text += &rest.text;
            shown.logprobs.extend(rest.logprobs);
        }
        Ok(Picked { shown, finish })
    }

    /// What was held back for a stop string or an unfinished character is text after all.
    pub(crate) fn flush(&mut self) -> Shown {
        let rest = self.detokenizer.finish();
        let (mut shown, stopped) = self.pass(&rest);
        if !stopped {
            let held = self.stops.finish();
            self.text += &held;
            shown.text += &held;
            shown.logprobs.extend(self.held.drain(..).map(|(_, logprob)| logprob));
        }
        shown
    }

    /// Shows what of the text so far and of the next piece cannot belong to a stop string, and says whether one was
    /// met: its tokens are none of the answer's, as it is none of the text.
    fn pass(&mut self, piece: &str) -> (Shown, bool) {
        let passed = self.stops.push(piece);
        self.stopped |= passed.stopped;
        self.text += &passed.text;
        let shown = self.held.iter().take_while(|(end, _)| *end <= self.text.len()).count();
        let logprobs = self.held.drain(..shown).map(|(_, logprob)| logprob).collect();
        if passed.stopped {
            self.held.clear();
        }
        (Shown { text: passed.text, logprobs }, passed.stopped)
    }

    /// The answer as it is when it ends.
    pub(crate) fn take(&mut self, finish: FinishReason) -> Generation {
        self.metrics.generated_tokens = self.ids.len();
        let (text, ids) = (std::mem::take(&mut self.text), std::mem::take(&mut self.ids));
        Generation { text, ids, finish, stopped: self.stopped, metrics: self.metrics }
    }
}

/// Why no token can be picked from `logits`, of which a bias banned some that were allowed, or did not.
fn nothing_left(logits: &[f32], bans_any: bool, position: usize) -> EngineError {
    if !bans_any || logits.iter().any(|logit| logit.is_nan()) {
        return EngineError::NotANumber { position, damage: None };
    }
    let value = format!("minus infinity for every token that may come next (at token {position})");
    EngineError::Setting { name: "logit_bias", value, expected: "one at least must be left" }
}

#[cfg(test)]
mod tests {
    use text::{TokenType, Vocab};

    use super::*;

    const END: u32 = 0;
    const CONTROL: u32 = 1;
    /// The two bytes of `é`.
    const BYTES: [u32; 2] = [2, 3];
    const FIRST_WORD: u32 = 4;
    const WORDS: [&str; 6] = ["a", "b", "ST", "OP", "aS", "c"];

    fn tokenizer() -> Arc<Tokenizer> {
        let tokens: Vec<&str> = ["</s>", "<ctl>", "<0xC3>", "<0xA9>"].into_iter().chain(WORDS).collect();
        let mut vocab = Vocab::spm(tokens.clone(), vec![0.0; tokens.len()]);
        vocab.types = vec![TokenType::Control, TokenType::Control, TokenType::Byte, TokenType::Byte];
        vocab.types.resize(tokens.len(), TokenType::Normal);
        vocab.eos = Some(END);
        Arc::new(Tokenizer::from_vocab(vocab).unwrap())
    }

    fn word(word: &str) -> u32 {
        FIRST_WORD + WORDS.iter().position(|known| *known == word).unwrap() as u32
    }

    /// What is shown of the answer of these ids, event by event.
    fn shown(request: &Request, ids: &[u32]) -> Vec<(String, Vec<u32>)> {
        let tokenizer = tokenizer();
        let mut answer = Answer::new(tokenizer.clone(), request);
        let mut events = Vec::new();
        let mut event = |shown: Shown| {
            events.push((shown.text, shown.logprobs.iter().map(|logprob| logprob.id).collect()));
        };
        for (position, id) in ids.iter().enumerate() {
            let mut logits = vec![0.0; tokenizer.vocab_size()];
            logits[*id as usize] = 9.0;
            let picked = answer.pick(&[], &mut logits, position, true).unwrap();
            event(picked.shown);
            if picked.finish.is_some() {
                assert_eq!(position + 1, ids.len(), "it ended early");
                return events;
            }
        }
        event(answer.flush());
        events
    }

    #[test]
    fn probabilities_come_with_the_text_of_their_tokens() {
        let [a, b, st, op, a_s] = ["a", "b", "ST", "OP", "aS"].map(word);
        let [upper, lower] = BYTES;
        type Case<'a> = (&'a [&'a str], &'a [u32], &'a [(&'a str, &'a [u32])]);
        let cases: [Case<'_>; 12] = [
            // Nothing to wait for.
            (&[], &[a, st], &[("a", &[a]), ("ST", &[st]), ("", &[])]),
            // Met at a border between tokens: its tokens are none of the answer's.
            (&["STOP"], &[a, st, op], &[("a", &[a]), ("", &[]), ("", &[])]),
            // Met at once.
            (&["ST"], &[a, st], &[("a", &[a]), ("", &[])]),
            // A false start.
            (&["STOP"], &[st, b], &[("", &[]), ("STb", &[st, b]), ("", &[])]),
            (&["STOP"], &[st, st, op], &[("", &[]), ("ST", &[st]), ("", &[])]),
            // Half of a token may belong to one: it comes once all of it is text, and not where half is not.
            (&["SUM"], &[a_s, b], &[("a", &[]), ("Sb", &[a_s, b]), ("", &[])]),
            (&["SS"], &[a_s, st], &[("a", &[]), ("", &[])]),
            // Broken off while held.
            (&["STOP"], &[a, st], &[("a", &[a]), ("", &[]), ("ST", &[st])]),
            // The first bytes of a character wait for the last.
            (&[], &[upper, lower, a], &[("", &[]), ("\u{e9}", &[upper, lower]), ("a", &[a]), ("", &[])]),
            (&["\u{e9}"], &[a, upper, lower], &[("a", &[a]), ("", &[]), ("", &[])]),
            // What never becomes one is text.
            (&[], &[upper], &[("", &[]), ("\u{fffd}", &[upper])]),
            // What prints nothing comes at once, or in its turn.
            (
                &["STOP"],
                &[CONTROL, st, CONTROL, a],
                &[("", &[CONTROL]), ("", &[]), ("", &[]), ("STa", &[st, CONTROL, a]), ("", &[])],
            ),
        ];
        for (stop, ids, want) in cases {
            let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
            let want: Vec<_> = want.iter().map(|(text, ids)| ((*text).to_owned(), ids.to_vec())).collect();
            let request = Request { stop, logprobs: Some(0), ..Request::default() };
            assert_eq!(shown(&request, ids), want, "{:?} {ids:?}", request.stop);
            let without: Vec<_> = want.into_iter().map(|(text, _)| (text, Vec::new())).collect();
            assert_eq!(shown(&Request { logprobs: None, ..request }, ids), without, "none were asked for");
        }
    }

    #[test]
    fn a_bias_that_leaves_nothing_is_named_and_damage_is_not_laid_to_it() {
        let tokenizer = tokenizer();
        let vocab = tokenizer.vocab_size();
        let banned = |ids: &[u32]| ids.iter().map(|id| (*id, f32::NEG_INFINITY)).collect::<Vec<_>>();
        let all = banned(&(0..vocab as u32).collect::<Vec<_>>());
        let [a, b] = ["a", "b"].map(word);
        let grammar = |regex: &str| {
            let vocabulary = crate::Vocabulary::new(tokenizer.clone());
            crate::Grammar::compile(&vocabulary, &crate::Format::Regex(regex.to_owned())).unwrap()
        };
        let fine = vec![0.0; vocab];
        let mut partly = fine.clone();
        partly[b as usize] = f32::NAN;
        type Case = (Vec<(u32, f32)>, Option<crate::Grammar>, Vec<f32>, &'static str);
        let cases: [Case; 11] = [
            (all.clone(), None, fine.clone(), "logit_bias"),
            (all[..vocab - 1].to_vec(), None, fine.clone(), ""),
            (banned(&[a, b]), Some(grammar("a|b")), fine.clone(), "logit_bias"),
            (banned(&[a]), Some(grammar("a|b")), fine.clone(), ""),
            (vec![(a, -100.0)], Some(grammar("a")), fine, ""),
            (all.clone(), None, vec![f32::NAN; vocab], "not numbers"),
            (all.clone(), None, partly.clone(), "not numbers"),
            (banned(&[b]), None, partly.clone(), "not numbers"),
            (vec![], None, partly.clone(), "not numbers"),
            (vec![], Some(grammar("a")), partly, "not numbers"),
            (all, None, vec![f32::NEG_INFINITY; vocab], "not numbers"),
        ];
        for (index, (logit_bias, grammar, logits, want)) in cases.into_iter().enumerate() {
            for temperature in [0.0, 1.0] {
                let sampler =
                    crate::SamplerOptions { logit_bias: logit_bias.clone(), temperature, ..Default::default() };
                let request = Request { sampler, grammar: grammar.clone(), ..Request::default() };
                let picked = Answer::new(tokenizer.clone(), &request).pick(&[], &mut logits.clone(), 7, true);
                match picked {
                    Ok(_) => assert_eq!(want, "", "case {index}"),
                    Err(error) => {
                        assert!(!want.is_empty() && error.to_string().contains(want), "case {index}: {error}");
                        assert_eq!(error.is_misuse(), want == "logit_bias", "case {index}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_end_is_a_token_of_a_completion_and_the_last() {
        let [a, st] = ["a", "ST"].map(word);
        for (chat, ids, want) in [
            (false, vec![a, st, END], vec![st, END]),
            (true, vec![a, st, END], vec![st]),
            (false, vec![END], vec![END]),
            (true, vec![END], vec![]),
        ] {
            let stop = vec!["STOP".to_owned()];
            let request = Request { chat, stop, logprobs: Some(0), ..Request::default() };
            assert_eq!(shown(&request, &ids).last().unwrap().1, want, "chat {chat}, {ids:?}");
        }
        // As many tokens as asked for end an answer that holds some back.
        let request =
            Request { max_tokens: Some(2), stop: vec!["STOP".to_owned()], logprobs: Some(0), ..Request::default() };
        assert_eq!(shown(&request, &[a, st]), [("a".to_owned(), vec![a]), ("ST".to_owned(), vec![st])]);
    }
}
