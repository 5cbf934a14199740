//! Picks the next token from logits.
//!
//! In this order: penalties, logit bias, then (unless greedy) top-k, typical, top-p and min-p on the distribution, then
//! temperature and the draw. The same seed gives the same text for the same logits.

use std::collections::HashMap;

use rand_pcg::{
    Pcg64,
    rand_core::{Rng, SeedableRng},
};

use crate::EngineError;

/// How tokens are picked. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// 0 is greedy; 1 the model's own distribution; higher is flatter.
    pub temperature: f32,
    /// Keeps the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest whose probabilities sum to p (Holtzman et al. 2019, arXiv:1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keeps those at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Keeps those closest to the expected information until they sum to p (Meister et al. 2022, arXiv:2202.00666);
    /// 1 keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
    pub repetition_penalty: f32,
    /// Tokens back that the penalties look; 0 looks at all.
    pub penalty_window: usize,
    /// Subtracted for each time a token was generated.
    pub frequency_penalty: f32,
    /// Subtracted once where a token was generated.
    pub presence_penalty: f32,
    /// Added to single logits; minus infinity bans a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            penalty_window: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Checks that every setting lies in its range.
    ///
    /// # Errors
    /// Names the setting, its value and the range.
    pub fn check(&self, vocab: usize) -> Result<(), EngineError> {
        let range = |name, value: f32, ok: bool, expected| {
            if ok { Ok(()) } else { Err(EngineError::Setting { name, value: value.to_string(), expected }) }
        };
        let unit = |x: f32| (0.0..=1.0).contains(&x);
        range("temperature", self.temperature, (0.0..=100.0).contains(&self.temperature), "from 0 to 100")?;
        range("top_p", self.top_p, unit(self.top_p) && self.top_p > 0.0, "above 0, at most 1")?;
        range("min_p", self.min_p, unit(self.min_p), "from 0 to 1")?;
        range("typical_p", self.typical_p, unit(self.typical_p) && self.typical_p > 0.0, "above 0, at most 1")?;
        let repetition = self.repetition_penalty;
        range("repetition_penalty", repetition, repetition.is_finite() && repetition > 0.0, "a positive number")?;
        for (name, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            range(name, penalty, (-100.0..=100.0).contains(&penalty), "from -100 to 100")?;
        }
        for (id, bias) in &self.logit_bias {
            if *id as usize >= vocab {
                return Err(EngineError::IdOutOfRange { id: *id, vocab });
            }
            range("logit_bias", *bias, !bias.is_nan() && *bias < f32::INFINITY, "a number, or minus infinity")?;
        }
        Ok(())
    }
}

/// Picks tokens for one sequence.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: Pcg64,
    /// Tokens of the prompt and of the answer, for the repetition penalty.
    seen: Vec<u32>,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    p: f32,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub fn new(options: SamplerOptions, prompt: &[u32]) -> Sampler {
        let rng = Pcg64::seed_from_u64(options.seed);
        Sampler { options, rng, seen: prompt.to_vec(), generated: HashMap::new(), candidates: Vec::new() }
    }

    /// Picks the next token; `None` where no logit is a number. Changes `logits` in place.
    pub fn pick(&mut self, logits: &mut [f32]) -> Option<u32> {
        self.penalise(logits);
        let id = if self.options.temperature == 0.0 { greedy(logits)? } else { self.draw(logits)? };
        self.seen.push(id);
        *self.generated.entry(id).or_insert(0) += 1;
        Some(id)
    }

    fn penalise(&self, logits: &mut [f32]) {
        let options = &self.options;
        if options.repetition_penalty != 1.0 {
            let back = if options.penalty_window == 0 { self.seen.len() } else { options.penalty_window };
            let mut recent = self.seen[self.seen.len().saturating_sub(back)..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            for id in recent {
                let logit = &mut logits[id as usize];
                *logit = if *logit > 0.0 {
                    *logit / options.repetition_penalty
                } else {
                    *logit * options.repetition_penalty
                };
            }
        }
        for (id, count) in &self.generated {
            logits[*id as usize] -= options.frequency_penalty * *count as f32 + options.presence_penalty;
        }
        for (id, bias) in &options.logit_bias {
            logits[*id as usize] += bias;
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let options = &self.options;
        let largest = logits[greedy(logits)? as usize];
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(
            logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY).map(|(id, logit)| Candidate {
                id: id as u32,
                logit: *logit,
                p: 0.0,
            }),
        );
        let by_logit = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
        if options.top_k > 0 && options.top_k < candidates.len() {
            candidates.select_nth_unstable_by(options.top_k - 1, by_logit);
            candidates.truncate(options.top_k);
        }
        candidates.sort_unstable_by(by_logit);
        set_probabilities(candidates, largest, 1.0);
        if options.typical_p < 1.0 {
            keep_typical(candidates, options.typical_p);
            set_probabilities(candidates, largest, 1.0);
        }
        if options.top_p < 1.0 {
            keep_mass(candidates, options.top_p);
        }
        if options.min_p > 0.0 {
            let least = candidates[0].p * options.min_p;
            let kept = candidates.partition_point(|c| c.p >= least).max(1);
            candidates.truncate(kept);
        }
        set_probabilities(candidates, largest, options.temperature);
        // 53 bits, as a double has.
        let draw = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut sum = 0.0;
        for candidate in candidates.iter() {
            sum += f64::from(candidate.p);
            if draw < sum {
                return Some(candidate.id);
            }
        }
        candidates.last().map(|candidate| candidate.id)
    }
}

/// The token of the largest logit, the first among equals; `None` where none is a number.
fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, best)| best) {
            best = Some((id, logit));
        }
    }
    best.filter(|(_, logit)| logit.is_finite()).map(|(id, _)| id as u32)
}

/// Softmax of logits over temperature.
fn set_probabilities(candidates: &mut [Candidate], largest: f32, temperature: f32) {
    let mut sum = 0.0f64;
    for candidate in candidates.iter_mut() {
        candidate.p = ((candidate.logit - largest) / temperature).exp();
        sum += f64::from(candidate.p);
    }
    for candidate in candidates.iter_mut() {
        candidate.p = (f64::from(candidate.p) / sum) as f32;
    }
}

/// Keeps the first whose probabilities reach `mass`, at least one; they are sorted, likeliest first.
fn keep_mass(candidates: &mut Vec<Candidate>, mass: f32) {
    let mut sum = 0.0;
    let kept = candidates.iter().position(|candidate| {
        sum += candidate.p;
        sum >= mass
    });
    candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
}

/// Keeps those whose information is closest to the entropy, until they reach `mass`; leaves them sorted by logit.
fn keep_typical(candidates: &mut Vec<Candidate>, mass: f32) {
    let entropy: f32 = candidates.iter().filter(|c| c.p > 0.0).map(|c| -c.p * c.p.ln()).sum();
    let distance = |c: &Candidate| if c.p > 0.0 { (-c.p.ln() - entropy).abs() } else { f32::INFINITY };
    candidates.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
    keep_mass(candidates, mass);
    candidates.sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(options: SamplerOptions, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for seed in 0..draws {
            let mut sampler = Sampler::new(SamplerOptions { seed: seed as u64, ..options.clone() }, &[]);
            counts[sampler.pick(&mut logits.to_vec()).unwrap() as usize] += 1;
        }
        counts
    }

    fn warm() -> SamplerOptions {
        SamplerOptions { temperature: 1.0, ..SamplerOptions::default() }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let p: [f32; 4] = [0.5, 0.3, 0.15, 0.05];
        let logits: Vec<f32> = p.iter().map(|p| p.ln() + 3.0).collect();
        let counts = counts(warm(), &logits, 20_000);
        for (count, p) in counts.iter().zip(p) {
            let expected = 20_000.0 * p;
            // Four standard deviations of a binomial.
            assert!((*count as f32 - expected).abs() < 4.0 * (expected * (1.0 - p)).sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let kept = |options| counts(options, &logits, 600).iter().map(|n| *n > 0).collect::<Vec<_>>();
        assert_eq!(kept(SamplerOptions { top_k: 2, ..warm() }), [true, true, false, false]);
        assert_eq!(kept(SamplerOptions { top_p: 0.79, ..warm() }), [true, true, false, false]);
        assert_eq!(kept(SamplerOptions { top_p: 0.81, ..warm() }), [true, true, true, false]);
        assert_eq!(kept(SamplerOptions { min_p: 0.25, ..warm() }), [true, true, true, false]);
        // Entropy 1.14: informations 0.69, 1.20, 1.90, 3.0; the second is the most typical, then the first.
        assert_eq!(kept(SamplerOptions { typical_p: 0.25, ..warm() }), [false, true, false, false]);
        assert_eq!(kept(SamplerOptions { typical_p: 0.5, ..warm() }), [true, true, false, false]);
        let bias = vec![(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)];
        assert_eq!(kept(SamplerOptions { logit_bias: bias, ..warm() }), [false, false, true, true]);
    }

    #[test]
    fn penalties_push_away_from_what_was_seen() {
        let pick = |options, prompt: &[u32]| {
            let mut sampler = Sampler::new(options, prompt);
            (0..3).map(|_| sampler.pick(&mut [2.0, 1.9, -1.0]).unwrap()).collect::<Vec<_>>()
        };
        let plain = SamplerOptions::default;
        assert_eq!(pick(plain(), &[0]), [0, 0, 0]);
        assert_eq!(pick(SamplerOptions { repetition_penalty: 1.5, ..plain() }, &[0]), [1, 0, 0]);
        assert_eq!(pick(SamplerOptions { presence_penalty: 0.5, ..plain() }, &[0]), [0, 1, 0]);
        assert_eq!(pick(SamplerOptions { frequency_penalty: 2.0, ..plain() }, &[]), [0, 1, 0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let text = |seed| {
            let mut sampler = Sampler::new(SamplerOptions { seed, ..warm() }, &[]);
            (0..50).map(|_| sampler.pick(&mut logits.clone()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn nonsense_is_refused_or_reported() {
        assert_eq!(Sampler::new(SamplerOptions::default(), &[]).pick(&mut [f32::NAN; 3]), None);
        assert_eq!(Sampler::new(warm(), &[]).pick(&mut [f32::NEG_INFINITY; 3]), None);
        let check = |options: SamplerOptions| options.check(10).unwrap_err().to_string();
        assert!(check(SamplerOptions { temperature: -1.0, ..warm() }).contains("temperature"));
        assert!(check(SamplerOptions { top_p: 0.0, ..warm() }).contains("top_p"));
        assert!(check(SamplerOptions { logit_bias: vec![(10, 0.0)], ..warm() }).contains("10"));
        assert!(check(SamplerOptions { repetition_penalty: f32::NAN, ..warm() }).contains("repetition_penalty"));
    }
}
