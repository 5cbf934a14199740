//! The plain way to truncate, against which the fast one is tested: copy, sort, sum, all in `f64`.

use super::{tests::warm, *};

#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    logit: f64,
    p: f64,
}

/// What settings keep, likeliest first.
#[derive(Debug)]
struct Reference {
    kept: Vec<Token>,
    /// How near the nearest token is to falling on the other side of a limit. Where that is within the rounding of
    /// `f32`, either set is right.
    margin: f64,
}

impl Reference {
    fn new(options: &SamplerOptions, logits: &[f32]) -> Reference {
        let tokens = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let kept = tokens.map(|(id, logit)| Token { id: id as u32, logit: f64::from(*logit), p: 0.0 }).collect();
        let mut set = Reference { kept, margin: f64::INFINITY };
        set.sort();
        if options.top_k > 0 {
            set.kept.truncate(options.top_k);
        }
        set.softmax(1.0);
        if options.typical_p < 1.0 {
            set.keep_typical(f64::from(options.typical_p));
            set.softmax(1.0);
        }
        if options.top_p == 0.0 {
            set.kept.truncate(1);
        } else if options.top_p < 1.0 {
            set.keep_mass(f64::from(options.top_p));
        }
        if options.min_p > 0.0 {
            set.keep_share(f64::from(options.min_p));
        }
        set.softmax(f64::from(options.temperature));
        set
    }

    fn sort(&mut self) {
        self.kept.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.id.cmp(&b.id)));
    }

    /// What an `f32` of the size of the largest logit is rounded by, against one of the size of 1.
    fn coarseness(&self) -> f64 {
        self.kept[0].logit.abs().max(1.0)
    }

    fn softmax(&mut self, temperature: f64) {
        let largest = self.kept[0].logit;
        self.kept.iter_mut().for_each(|token| token.p = ((token.logit - largest) / temperature).exp());
        let sum: f64 = self.kept.iter().map(|token| token.p).sum();
        self.kept.iter_mut().for_each(|token| token.p /= sum);
    }

    fn keep_mass(&mut self, mass: f64) {
        let mut sum = 0.0;
        let last = self.kept.iter().position(|token| {
            self.margin = self.margin.min(f64::abs(sum - mass));
            sum += token.p;
            sum >= mass
        });
        self.margin = self.margin.min((sum - mass).abs());
        self.kept.truncate(last.map_or(self.kept.len(), |last| last + 1));
    }

    fn keep_share(&mut self, share: f64) {
        let first = self.kept[0];
        let coarseness = self.coarseness();
        // Those of the largest logit are kept whatever the rounding.
        for token in self.kept.iter().filter(|token| token.logit < first.logit) {
            self.margin = self.margin.min((token.p / (first.p * share) - 1.0).abs() / coarseness);
        }
        self.kept.retain(|token| token.logit == first.logit || token.p >= first.p * share);
    }

    fn keep_typical(&mut self, mass: f64) {
        let coarseness = self.coarseness();
        let entropy: f64 = self.kept.iter().filter(|token| token.p > 0.0).map(|token| -token.p * token.p.ln()).sum();
        let first = self.kept[0];
        // The information from the logit, as the probability may be too small for a number.
        let distance = |token: &Token| (first.logit - token.logit - first.p.ln() - entropy).abs();
        self.kept.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        let all = self.kept.clone();
        self.keep_mass(mass);
        let last = self.kept[self.kept.len() - 1];
        for token in all.iter().filter(|token| token.logit != last.logit) {
            self.margin = self.margin.min((distance(token) - distance(&last)).abs() / coarseness / 10.0);
        }
        self.sort();
    }
}

/// Normal numbers (Box and Muller 1958).
fn normal(rng: &mut Pcg64) -> f64 {
    let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

/// Logits of one of several kinds.
fn logits(rng: &mut Pcg64, kind: u64, n: usize) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..n)
        .map(|_| match kind {
            0 => normal(rng) as f32,
            1 => normal(rng) as f32 * 4.0 - 10.0,
            // Few values, hence many ties.
            2 => (normal(rng) * 2.0).round() as f32,
            3 => normal(rng) as f32 * 1e3,
            4 => normal(rng) as f32 * 1e30,
            5 => 1.5,
            6 if !rng.next_u64().is_multiple_of(3) => f32::NEG_INFINITY,
            _ => normal(rng) as f32 * 2.0,
        })
        .collect();
    let chosen = (rng.next_u64() % n as u64) as usize;
    match kind {
        6 => logits[chosen] = 0.5,
        7 => logits[chosen] = 15.0,
        _ => (),
    }
    logits
}

fn settings(rng: &mut Pcg64) -> SamplerOptions {
    fn one<T: Copy>(rng: &mut Pcg64, of: &[T]) -> T {
        of[(rng.next_u64() % of.len() as u64) as usize]
    }
    SamplerOptions {
        temperature: one(rng, &[1.0, 1.0, 0.7, 0.1, 3.0, 100.0, 1e-40]),
        top_k: one(rng, &[0, 0, 0, 1, 2, 3, 20, 64, 700]),
        top_p: one(rng, &[1.0, 1.0, 0.95, 0.9, 0.3, 1e-3, 0.0, 0.999]),
        min_p: one(rng, &[0.0, 0.0, 0.05, 0.1, 0.7, 1e-9, 1.0]),
        typical_p: one(rng, &[1.0, 1.0, 0.9, 0.2, 0.99]),
        ..warm()
    }
}

/// Ids and probabilities of what is kept.
fn distribution(sampler: &mut Sampler, logits: &[f32]) -> Vec<(u32, f64)> {
    let temperature = sampler.options.temperature;
    let (mut kept, ids) = sampler.filtered(&[], logits).unwrap();
    let id = |place: u32| ids.map_or(place, |ids| ids[place as usize]);
    kept.probabilities(temperature).into_iter().map(|(place, p)| (id(place), p)).collect()
}

#[test]
fn keeps_and_weighs_what_the_plain_way_does() {
    let mut rng = Pcg64::seed_from_u64(7);
    let (mut compared, cases) = (0, 8000);
    for case in 0..cases {
        let n = [1, 2, 3, 15, 40, 255, 256, 257, 600, 3000][case % 10];
        let kind = rng.next_u64() % 8;
        let logits = logits(&mut rng, kind, n);
        let options = settings(&mut rng);
        let mut expected = Reference::new(&options, &logits);
        if expected.margin < 1e-6 {
            continue;
        }
        compared += 1;
        expected.kept.sort_by_key(|token| token.id);
        let got = distribution(&mut Sampler::new(options.clone(), &[]), &logits);
        let ids: Vec<u32> = got.iter().map(|(id, _)| *id).collect();
        let expected_ids: Vec<u32> = expected.kept.iter().map(|token| token.id).collect();
        assert_eq!(ids, expected_ids, "kind {kind}, {n} logits, {options:?}");
        for (token, (_, p)) in expected.kept.iter().zip(&got) {
            assert!((token.p - p).abs() < 1e-6, "{token:?} {p}: kind {kind}, {n} logits, {options:?}");
        }
    }
    assert!(compared > cases * 9 / 10, "{compared} of {cases}");
}

#[test]
fn a_large_vocabulary_is_cut_where_the_plain_way_cuts_it() {
    let mut rng = Pcg64::seed_from_u64(8);
    for (kind, options) in [
        (7, SamplerOptions { top_p: 0.9, ..warm() }),
        (0, SamplerOptions { top_p: 0.9, ..warm() }),
        (1, SamplerOptions { typical_p: 0.8, top_p: 0.99, ..warm() }),
        (5, SamplerOptions { top_p: 0.5, temperature: 0.8, ..warm() }),
        (2, SamplerOptions { top_k: 5000, min_p: 0.01, ..warm() }),
    ] {
        let logits = logits(&mut rng, kind, 100_003);
        let expected = Reference::new(&options, &logits);
        let got = distribution(&mut Sampler::new(options, &[]), &logits);
        // The sets differ by the few tokens that rounding decides about.
        let differs = expected.kept.len().abs_diff(got.len());
        assert!(differs <= 2, "kind {kind}: {} {}", expected.kept.len(), got.len());
        let largest = got.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        assert!((largest.1 - expected.kept.iter().map(|token| token.p).fold(0.0, f64::max)).abs() < 1e-6);
    }
}

#[test]
fn draws_follow_the_kept_distribution() {
    let mut rng = Pcg64::seed_from_u64(9);
    for (kind, n) in [(0, 10), (2, 300), (1, 1000), (6, 40)] {
        for options in [
            warm(),
            SamplerOptions { temperature: 2.0, ..warm() },
            SamplerOptions { top_k: 12, top_p: 0.9, temperature: 0.7, ..warm() },
            SamplerOptions { typical_p: 0.7, min_p: 0.01, ..warm() },
        ] {
            let logits = logits(&mut rng, kind, n);
            let draws = 20_000;
            let mut counts = HashMap::new();
            let mut sampler = Sampler::new(options.clone(), &[]);
            for _ in 0..draws {
                *counts.entry(sampler.pick(&mut logits.clone()).unwrap()).or_insert(0) += 1;
            }
            // Pearson's statistic over the tokens expected 5 times or more, the others as one.
            let (mut statistic, mut classes, mut rare) = (0.0, 0.0, (0.0, 0.0));
            for token in Reference::new(&options, &logits).kept {
                let (expected, count) = (token.p * f64::from(draws), f64::from(counts.remove(&token.id).unwrap_or(0)));
                if expected < 5.0 {
                    rare = (rare.0 + expected, rare.1 + count);
                } else {
                    statistic += (count - expected).powi(2) / expected;
                    classes += 1.0;
                }
            }
            assert!(counts.is_empty(), "drawn, though not kept: {counts:?}");
            if rare.0 > 5.0 {
                statistic += (rare.1 - rare.0).powi(2) / rare.0;
                classes += 1.0;
            }
            // Mean and variance of chi-square are its degrees of freedom and twice that; five deviations.
            let bound = classes + 5.0 * f64::sqrt(2.0 * classes);
            assert!(statistic < bound, "{statistic} above {bound}: kind {kind}, {options:?}");
        }
    }
}

#[test]
fn every_draw_falls_into_the_interval_of_its_token() {
    let mut rng = Pcg64::seed_from_u64(10);
    for n in [1, 5, 300, 2000] {
        for options in [warm(), SamplerOptions { top_p: 0.9, ..warm() }, SamplerOptions { top_k: 3, ..warm() }] {
            let logits = logits(&mut rng, 0, n);
            let mut sampler = Sampler::new(options, &[]);
            let distribution = distribution(&mut sampler, &logits);
            let (mut kept, _) = sampler.filtered(&[], &logits).unwrap();
            for step in 0..=500 {
                let random = (f64::from(step) / 500.0).min(1.0 - f64::EPSILON / 2.0);
                let drawn = kept.draw(1.0, random).unwrap();
                let before: f64 = distribution.iter().take_while(|(id, _)| *id < drawn).map(|(_, p)| p).sum();
                let (_, p) = distribution.iter().find(|(id, _)| *id == drawn).expect("a kept token");
                let near = before - 1e-6..before + p + 1e-6;
                assert!(near.contains(&random), "{n}: {random} drew {drawn}, {near:?}");
            }
        }
    }
}

/// The repetition penalty as it was defined: over a sorted copy of the window.
#[test]
fn penalties_reach_what_the_window_holds() {
    let mut rng = Pcg64::seed_from_u64(11);
    for (window, frequency) in [(0, 0.0), (1, 0.5), (3, 0.0), (64, 0.25), (1000, -0.5)] {
        let options = SamplerOptions {
            repetition_penalty: 1.3,
            penalty_window: window,
            frequency_penalty: frequency,
            presence_penalty: frequency / 2.0,
            logit_bias: vec![(3, 1.0), (5, f32::NEG_INFINITY)],
            ..warm()
        };
        let mut seen: Vec<u32> = (0..20).map(|_| (rng.next_u64() % 30) as u32).collect();
        let prompt = seen.len();
        let mut sampler = Sampler::new(options.clone(), &seen);
        for _ in 0..200 {
            let plain = logits(&mut rng, 7, 30);
            let mut expected = plain.clone();
            let reach = if window == 0 { seen.len() } else { window };
            let mut recent = seen[seen.len().saturating_sub(reach)..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            for id in recent {
                let logit = &mut expected[id as usize];
                *logit = if *logit > 0.0 { *logit / 1.3 } else { *logit * 1.3 };
            }
            for id in 0..30 {
                let count = seen[prompt..].iter().filter(|seen| **seen == id).count();
                if count > 0 {
                    expected[id as usize] -= frequency * count as f32 + frequency / 2.0;
                }
            }
            expected[3] += 1.0;
            expected[5] = f32::NEG_INFINITY;
            let mut got = plain;
            seen.push(sampler.pick(&mut got).unwrap());
            assert_eq!(got, expected, "window {window}");
        }
    }
}

/// Of a row, the largest that are asked for and a few more; minus infinity in all other places.
fn largest_of(logits: &[f32], top: usize) -> (Vec<u32>, Vec<f32>) {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    // NaN first, as devices have it.
    let rank = |id: &u32| (!logits[*id as usize].is_nan(), -logits[*id as usize] + 0.0);
    ids.sort_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b)));
    ids.truncate(top.next_power_of_two());
    ids.reverse();
    let mut row = vec![f32::NEG_INFINITY; logits.len()];
    ids.iter().for_each(|id| row[*id as usize] = logits[*id as usize]);
    (ids, row)
}

#[test]
fn the_largest_logits_give_the_text_that_all_give() {
    let mut rng = Pcg64::seed_from_u64(12);
    let penalised = SamplerOptions {
        repetition_penalty: 1.3,
        penalty_window: 20,
        presence_penalty: 0.5,
        logit_bias: vec![(3, -1.0), (5, f32::NEG_INFINITY)],
        ..SamplerOptions::default()
    };
    let mut asked = 0;
    for options in [
        SamplerOptions::default(),
        SamplerOptions { top_k: 1, ..warm() },
        SamplerOptions { top_k: 40, top_p: 0.95, temperature: 0.7, ..warm() },
        SamplerOptions { top_k: 20, min_p: 0.02, temperature: 1.5, ..warm() },
        SamplerOptions { top_k: 12, typical_p: 0.6, top_p: 0.9, ..warm() },
        SamplerOptions { top_k: 5, top_p: 0.0, ..warm() },
        penalised.clone(),
        SamplerOptions { temperature: 0.8, top_k: 10, frequency_penalty: 0.25, ..penalised.clone() },
    ] {
        for (kind, n) in [(0, 3000), (1, 513), (2, 1000), (5, 4099), (6, 700), (7, 2000)] {
            let prompt: Vec<u32> = (0..30).map(|_| (rng.next_u64() % 50) as u32).collect();
            let mut of_all = Sampler::new(SamplerOptions { seed: 3, ..options.clone() }, &prompt);
            let mut of_some = Sampler::new(SamplerOptions { seed: 3, ..options.clone() }, &prompt);
            for step in 0..40 {
                let mut all = logits(&mut rng, kind, n);
                let top = of_some.top(step % 3);
                assert!(top >= 1, "{options:?}");
                asked = asked.max(top);
                let (kept, mut some) = largest_of(&all, top);
                let want = of_all.pick(&mut all);
                assert!(want.is_some());
                assert_eq!(of_some.pick_among(&kept, &mut some), want, "step {step}, kind {kind} of {n}: {options:?}");
            }
            let mut all = logits(&mut rng, kind, n);
            all[n / 2] = f32::NAN;
            let (kept, mut some) = largest_of(&all, of_some.top(0));
            assert_eq!(of_some.pick_among(&kept, &mut some), None, "a NaN is among the largest");
        }
    }
    assert!(asked > 60, "penalties ask for more");
    for options in [
        warm(),
        SamplerOptions { top_p: 0.9, ..warm() },
        SamplerOptions { repetition_penalty: 0.9, ..penalised.clone() },
        SamplerOptions { presence_penalty: -0.5, ..penalised.clone() },
        SamplerOptions { logit_bias: vec![(3, 1.0)], ..penalised },
    ] {
        assert_eq!(Sampler::new(options.clone(), &[]).top(0), 0, "{options:?}");
    }
}
