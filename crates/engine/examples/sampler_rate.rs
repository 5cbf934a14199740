//! Time of one pick from a large vocabulary, by settings and by shape of the logits.
//!
//! `cargo run --release -p engine --example sampler_rate -- [VOCABULARY] [PICKS]`
//!
//! Method: one thread; each pick gets a fresh copy of the logits, made outside the time taken, as a model would have
//! just written them; the table shows the median and the least of the picks. The logits are normal numbers: "peaked"
//! with a deviation of 3 and ten tokens far above the rest, as a trained model has them, "flat" with a deviation of 1.
//! "read" is the time in which the logits are summed, the least that any pick must take.

use std::{hint::black_box, time::Instant};

use engine::{Sampler, SamplerOptions};
use rand_pcg::{
    Pcg64,
    rand_core::{Rng, SeedableRng},
};

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("a number"));
    let vocab = args.next().unwrap_or(262_144).max(16);
    let picks = args.next().unwrap_or(200).max(1);
    let mut rng = Pcg64::seed_from_u64(1);
    let flat: Vec<f32> = (0..vocab).map(|_| normal(&mut rng)).collect();
    let mut peaked: Vec<f32> = flat.iter().map(|logit| logit * 3.0).collect();
    for rank in 0..10 {
        peaked[(rng.next_u64() % vocab as u64) as usize] = 22.0 - 0.7 * rank as f32;
    }
    println!("{vocab} logits, {picks} picks, read {:.1} us", read_us(&flat, picks));
    println!("{:<44} {:>20} {:>20}", "", "peaked, us", "flat, us");
    println!("{:<44} {:>10} {:>9} {:>10} {:>9}", "settings", "median", "least", "median", "least");
    for (name, options, prompt) in settings(vocab) {
        let peaked = pick_us(&options, &prompt, &peaked, picks);
        let flat = pick_us(&options, &prompt, &flat, picks);
        println!("{name:<44} {:>10.1} {:>9.1} {:>10.1} {:>9.1}", peaked.0, peaked.1, flat.0, flat.1);
    }
}

/// Names, settings and prompts.
fn settings(vocab: usize) -> Vec<(&'static str, SamplerOptions, Vec<u32>)> {
    let at = |temperature| SamplerOptions { temperature, ..SamplerOptions::default() };
    let warm = || at(0.8);
    let long: Vec<u32> = (0..32_768u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab as u32).collect();
    let all = |options| SamplerOptions { repetition_penalty: 1.1, penalty_window: 0, ..options };
    vec![
        ("greedy", at(0.0), Vec::new()),
        ("temperature 1", at(1.0), Vec::new()),
        ("temperature 0.7", at(0.7), Vec::new()),
        ("top_k 40", SamplerOptions { top_k: 40, ..warm() }, Vec::new()),
        ("top_k 64, top_p 0.95", SamplerOptions { top_k: 64, top_p: 0.95, ..at(1.0) }, Vec::new()),
        ("top_k 5000", SamplerOptions { top_k: 5000, ..warm() }, Vec::new()),
        ("top_p 0.9", SamplerOptions { top_p: 0.9, ..warm() }, Vec::new()),
        ("top_p 0.95", SamplerOptions { top_p: 0.95, ..at(1.0) }, Vec::new()),
        ("top_p 0.99", SamplerOptions { top_p: 0.99, ..at(1.0) }, Vec::new()),
        ("min_p 0.05", SamplerOptions { min_p: 0.05, ..warm() }, Vec::new()),
        ("top_p 0.95, min_p 0.1", SamplerOptions { top_p: 0.95, min_p: 0.1, ..warm() }, Vec::new()),
        ("typical_p 0.9", SamplerOptions { typical_p: 0.9, ..warm() }, Vec::new()),
        ("greedy, repetition penalty on 32768 tokens", all(at(0.0)), long.clone()),
        ("top_k 64, top_p 0.95, the same penalty", all(SamplerOptions { top_k: 64, top_p: 0.95, ..at(1.0) }), long),
    ]
}

/// Median and least microseconds of a pick.
fn pick_us(options: &SamplerOptions, prompt: &[u32], logits: &[f32], picks: usize) -> (f64, f64) {
    let mut sampler = Sampler::new(options.clone(), prompt);
    let mut buffer = logits.to_vec();
    let times = (0..picks).map(|_| {
        buffer.copy_from_slice(logits);
        time_us(|| sampler.pick(black_box(&mut buffer)))
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    (times[picks / 2], times[0])
}

/// Least microseconds to sum the logits.
fn read_us(logits: &[f32], picks: usize) -> f64 {
    let sum = || {
        let mut lanes = [0.0f32; 16];
        for chunk in black_box(logits).chunks_exact(16) {
            lanes.iter_mut().zip(chunk).for_each(|(lane, logit)| *lane += logit);
        }
        lanes
    };
    (0..picks).map(|_| time_us(sum)).fold(f64::INFINITY, f64::min)
}

fn time_us<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_secs_f64() * 1e6
}

/// A normal number (Box and Muller 1958).
fn normal(rng: &mut Pcg64) -> f32 {
    let mut uniform = || ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
}
