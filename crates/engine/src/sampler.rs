//! Picks the next token from logits.
//!
//! In this order: penalties, logit bias, then (unless greedy) top-k, typical, top-p and min-p on the distribution, then
//! temperature and the draw. The same seed gives the same text for the same logits.
//!
//! A pick reads the logits once for the largest, once or twice more where their sum is needed, and otherwise only what
//! may be picked ([`cut`]): no vocabulary is sorted. The penalties cost the distinct tokens they reach.

mod cut;
#[cfg(test)]
mod reference;

use std::collections::{HashMap, HashSet, VecDeque, hash_map::Entry};

use rand_pcg::{
    Pcg64,
    rand_core::{Rng, SeedableRng},
};

pub(crate) use cut::{Candidates, Scratch, largest};

use crate::EngineError;

/// How tokens are picked. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// 0 is greedy; 1 the model's own distribution; higher is flatter.
    pub temperature: f32,
    /// Keeps the k likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest whose probabilities sum to p (Holtzman et al. 2019, arXiv:1904.09751); 1 keeps all, 0 the
    /// single likeliest.
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
    /// Added to single logits; minus infinity bans a token. A token has one bias at most.
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
        range("top_p", self.top_p, unit(self.top_p), "from 0 to 1")?;
        range("min_p", self.min_p, unit(self.min_p), "from 0 to 1")?;
        range("typical_p", self.typical_p, unit(self.typical_p) && self.typical_p > 0.0, "above 0, at most 1")?;
        let repetition = self.repetition_penalty;
        range("repetition_penalty", repetition, repetition.is_finite() && repetition > 0.0, "a positive number")?;
        for (name, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            range(name, penalty, (-100.0..=100.0).contains(&penalty), "from -100 to 100")?;
        }
        let mut biased = HashSet::with_capacity(self.logit_bias.len());
        for (id, bias) in &self.logit_bias {
            if *id as usize >= vocab {
                return Err(EngineError::IdOutOfRange { id: *id, vocab });
            }
            if !biased.insert(*id) {
                let (value, expected) = (format!("given twice for token {id}"), "a token has one bias at most");
                return Err(EngineError::Setting { name: "logit_bias", value, expected });
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
    /// Tokens of the prompt and of the answer that the repetition penalty reaches; empty where it is off.
    recent: Counts,
    /// The same in order, where a window bounds them.
    window: VecDeque<u32>,
    /// Tokens of the answer.
    generated: Counts,
    scratch: Scratch,
    /// What typical sampling kept: ids and their logits.
    ids: Vec<u32>,
    logits: Vec<f32>,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub fn new(options: SamplerOptions, prompt: &[u32]) -> Sampler {
        let mut sampler = Sampler {
            rng: Pcg64::seed_from_u64(options.seed),
            options,
            recent: Counts::default(),
            window: VecDeque::new(),
            generated: Counts::default(),
            scratch: Scratch::default(),
            ids: Vec::new(),
            logits: Vec::new(),
        };
        let reach = match sampler.options.penalty_window {
            0 => prompt.len(),
            window => window.min(prompt.len()),
        };
        prompt[prompt.len() - reach..].iter().for_each(|id| sampler.see(*id));
        sampler
    }

    /// The settings.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Picks the next token; `None` where no logit is finite, or any is NaN. Changes `logits` in place.
    pub fn pick(&mut self, logits: &mut [f32]) -> Option<u32> {
        self.pick_among(&[], logits)
    }

    /// The same of logits of which all but those of the ids `kept` are minus infinity; of all where there is none.
    pub(crate) fn pick_among(&mut self, kept: &[u32], logits: &mut [f32]) -> Option<u32> {
        self.penalise(logits);
        let id = match self.options.temperature {
            0.0 => candidates(kept, logits, &mut self.scratch).greedy()?,
            temperature => self.draw(kept, logits, temperature)?,
        };
        self.see(id);
        self.generated.add(id);
        Some(id)
    }

    /// How many of the largest logits decide what is picked, where up to `ahead` tokens are picked before; 0 where all
    /// do.
    pub(crate) fn top(&self, ahead: usize) -> usize {
        let options = &self.options;
        let top = if options.temperature == 0.0 { 1 } else { options.top_k };
        let lowers = options.repetition_penalty >= 1.0
            && options.frequency_penalty >= 0.0
            && options.presence_penalty >= 0.0
            && options.logit_bias.iter().all(|(_, bias)| *bias <= 0.0);
        if top == 0 || !lowers {
            return 0;
        }
        // What is lowered may give way to as many of those below; nothing else moves up.
        let mut reached = options.logit_bias.len();
        if options.repetition_penalty != 1.0 {
            reached += self.recent.list.len() + ahead;
        }
        if options.frequency_penalty != 0.0 || options.presence_penalty != 0.0 {
            reached += self.generated.list.len() + ahead;
        }
        top + reached
    }

    /// Whether the logit bias bans a token that these logits allow.
    pub(crate) fn bans_any(&self, logits: &[f32]) -> bool {
        let is_finite = |id: u32| logits.get(id as usize).is_some_and(|logit| logit.is_finite());
        self.options.logit_bias.iter().any(|(id, bias)| *bias == f32::NEG_INFINITY && is_finite(*id))
    }

    /// Counts a token for the repetition penalty.
    fn see(&mut self, id: u32) {
        if self.options.repetition_penalty == 1.0 {
            return;
        }
        self.recent.add(id);
        if self.options.penalty_window > 0 {
            self.window.push_back(id);
            if self.window.len() > self.options.penalty_window
                && let Some(oldest) = self.window.pop_front()
            {
                self.recent.remove(oldest);
            }
        }
    }

    fn penalise(&self, logits: &mut [f32]) {
        let options = &self.options;
        for (id, _) in &self.recent.list {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = if *logit > 0.0 {
                    *logit / options.repetition_penalty
                } else {
                    *logit * options.repetition_penalty
                };
            }
        }
        if options.frequency_penalty != 0.0 || options.presence_penalty != 0.0 {
            for (id, count) in &self.generated.list {
                if let Some(logit) = logits.get_mut(*id as usize) {
                    *logit -= options.frequency_penalty * *count as f32 + options.presence_penalty;
                }
            }
        }
        for (id, bias) in &options.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
    }

    fn draw(&mut self, kept: &[u32], logits: &[f32], temperature: f32) -> Option<u32> {
        // 53 bits, as a double has.
        let random = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let (mut kept, ids) = self.filtered(kept, logits)?;
        let place = kept.draw(temperature, random)?;
        ids.map_or(Some(place), |ids| ids.get(place as usize).copied())
    }

    /// What the settings keep, and the ids of its places where those are not the ids themselves.
    fn filtered<'a>(&'a mut self, kept: &[u32], logits: &'a [f32]) -> Option<(Candidates<'a>, Option<&'a [u32]>)> {
        let options = &self.options;
        let mut kept = candidates(kept, logits, &mut self.scratch);
        kept.greedy()?;
        kept.keep_top(options.top_k);
        let mut ids = None;
        if options.typical_p < 1.0 {
            kept.keep_typical(options.typical_p, &mut self.ids, &mut self.logits);
            kept = Candidates::new(&self.logits, kept.into_scratch());
            ids = Some(self.ids.as_slice());
        }
        if options.top_p == 0.0 {
            // By the order alone: of equals the first, where a mass of nearly 0 is a matter of rounding.
            kept.keep_top(1);
        } else if options.top_p < 1.0 {
            kept.keep_mass(options.top_p);
        }
        if options.min_p > 0.0 {
            kept.keep_share(options.min_p);
        }
        Some((kept, ids))
    }
}

/// The logits, of which all but those of the ids `kept` are minus infinity; where there is none any may be finite.
fn candidates<'a>(kept: &[u32], logits: &'a [f32], scratch: &'a mut Scratch) -> Candidates<'a> {
    if kept.is_empty() { Candidates::new(logits, scratch) } else { Candidates::among(kept, logits, scratch) }
}

/// Ids and how often each was counted. Adding and removing take constant time.
#[derive(Debug, Default)]
struct Counts {
    /// Each id once, with its count.
    list: Vec<(u32, u32)>,
    /// Where in the list an id is.
    places: HashMap<u32, usize>,
}

impl Counts {
    fn add(&mut self, id: u32) {
        match self.places.entry(id) {
            Entry::Occupied(place) => self.list[*place.get()].1 += 1,
            Entry::Vacant(place) => {
                place.insert(self.list.len());
                self.list.push((id, 1));
            }
        }
    }

    fn remove(&mut self, id: u32) {
        let Some(&place) = self.places.get(&id) else { return };
        self.list[place].1 -= 1;
        if self.list[place].1 == 0 {
            self.places.remove(&id);
            self.list.swap_remove(place);
            if let Some((moved, _)) = self.list.get(place) {
                self.places.insert(*moved, place);
            }
        }
    }
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

    pub(super) fn warm() -> SamplerOptions {
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
        assert_eq!(kept(SamplerOptions { top_p: 0.0, ..warm() }), [true, false, false, false]);
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
        for logits in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [1.0, f32::NAN, 0.0], [f32::INFINITY, 0.0, 0.0]] {
            for options in [SamplerOptions::default(), warm(), SamplerOptions { top_k: 1, typical_p: 0.5, ..warm() }] {
                assert_eq!(Sampler::new(options, &[]).pick(&mut logits.clone()), None, "{logits:?}");
            }
        }
        assert!(SamplerOptions { top_p: 0.0, logit_bias: vec![(1, 0.5), (2, 0.5)], ..warm() }.check(10).is_ok());
        let check = |options: SamplerOptions| options.check(10).unwrap_err().to_string();
        assert!(check(SamplerOptions { temperature: -1.0, ..warm() }).contains("temperature"));
        for top_p in [-0.1, 1.1, f32::NAN] {
            assert!(check(SamplerOptions { top_p, ..warm() }).contains("top_p"));
        }
        assert!(check(SamplerOptions { typical_p: 0.0, ..warm() }).contains("typical_p"));
        let twice = check(SamplerOptions { logit_bias: vec![(3, 0.0), (4, 0.0), (3, 1.0)], ..warm() });
        assert!(twice.contains("logit_bias") && twice.contains("token 3"), "{twice}");
        assert!(check(SamplerOptions { logit_bias: vec![(10, 0.0)], ..warm() }).contains("10"));
        assert!(check(SamplerOptions { repetition_penalty: f32::NAN, ..warm() }).contains("repetition_penalty"));
    }
}
