//! Tuning: kernels of a Vulkan device that have several variants are timed on the device, in the shapes of a model, and
//! the fastest are kept on disk by device, driver and kernels. Loading reads them and times nothing.
//!
//! A variant that computes something else than the rule's is excluded, aloud. What was chosen is checked against the CPU
//! before it is kept, as the rule's variants are before a model first runs ([`crate::self_check`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use graph::check::{self, Case, Trial};
use serde::{Deserialize, Serialize};
use vulkan::{Choices, Variant, Vulkan};

use crate::{
    EngineError, LoadOptions, ModelFile,
    devices::{DeviceOptions, Devices},
    load,
    self_check::{self, Known},
};

/// Sequences that decode in the steps that are timed, as kernels tell them apart; with matrix units the first four.
const SEQUENCES: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
const FEW: usize = 4;

/// The most of them.
const MOST: usize = 16;

/// Seconds that the timed steps of a variant take together, about, and their least number.
const STEPS_S: f64 = 0.02;
const STEPS: usize = 3;

/// Rounds through all variants: the faster of a variant's times counts.
const ROUNDS: usize = 2;

/// What another variant must be faster by, to take the place of the rule's.
const GAIN: f64 = 1.03;

/// Bytes of a file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// What came of a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct TunedKernel {
    /// The kernel: types, shape, and what it does beside.
    pub kernel: String,
    /// Variants that were timed.
    pub variants: usize,
    /// The variant that the rule gives.
    pub rule: String,
    /// Its time, microseconds.
    pub rule_us: f64,
    /// The variant that is chosen.
    pub chosen: String,
    /// Its time, microseconds.
    pub chosen_us: f64,
    /// Bytes that a run reads and writes.
    pub bytes: u64,
    /// Operations of a run.
    pub ops: u64,
    /// The chosen variant's share of the measured read bandwidth, per cent; `None` where that was not measured.
    pub percent_of_bandwidth: Option<f64>,
}

/// What came of tuning.
#[derive(Clone, Debug, Serialize)]
pub struct TuneReport {
    /// The device, as it calls itself.
    pub device: String,
    /// Its measured read bandwidth; software devices are not measured.
    pub read_bytes_per_s: Option<f64>,
    /// The kernels that have variants.
    pub kernels: Vec<TunedKernel>,
    /// Variants that are not to be trusted, and why.
    pub excluded: Vec<String>,
    /// What else is to be told.
    pub notices: Vec<String>,
    /// Where the choice is kept; `None` where nothing can be.
    pub file: Option<PathBuf>,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// [`Vulkan::build_id`]
    kernels: String,
    /// Variants by kernel, as they are written.
    choices: BTreeMap<String, String>,
}

impl Kept {
    fn choices(&self) -> Option<Choices> {
        self.choices.iter().map(|(kernel, variant)| Some((kernel.clone(), variant.parse().ok()?))).collect()
    }
}

/// Lets a device take what was chosen for it. Returns what is to be told: that the file is of no use.
pub(crate) fn apply(vulkan: &Vulkan) -> Option<String> {
    let path = vulkan.cache_file("tuning")?;
    match read(&path, &vulkan.build_id()) {
        Ok(choices) => {
            vulkan.choose(choices);
            None
        }
        Err(reason) => {
            Some(format!("{} {reason}: kernels are chosen by rule until `unicorn tune` is run", path.display()))
        }
    }
}

/// The choices of a file; none where there is no file.
fn read(path: &Path, build_id: &str) -> Result<Choices, &'static str> {
    match std::fs::metadata(path) {
        Err(_) => return Ok(Choices::new()),
        Ok(metadata) if metadata.len() > MOST_BYTES => return Err("is damaged"),
        Ok(_) => {}
    }
    let text = std::fs::read(path).map_err(|_| "cannot be read")?;
    let kept: Kept = serde_json::from_slice(&text).map_err(|_| "is damaged")?;
    if kept.kernels != build_id {
        return Err("is of another driver, version or set of capabilities");
    }
    kept.choices().ok_or("is damaged")
}

fn write(path: &Path, build_id: String, choices: &Choices) -> std::io::Result<()> {
    let choices = choices.iter().map(|(kernel, variant)| (kernel.clone(), variant.to_string())).collect();
    let text = serde_json::to_vec_pretty(&Kept { kernels: build_id, choices })?;
    self_check::replace(path, &text)
}

/// Forgets what was chosen for a device. Returns the file that held it, where there was one.
///
/// # Errors
/// Where there is no such device, or the file cannot be removed.
pub fn forget(device: &str) -> Result<Option<PathBuf>, EngineError> {
    let devices = Devices::open(device, &DeviceOptions::default())?;
    let Some(path) = vulkan_of(&devices, device)?.cache_file("tuning") else { return Ok(None) };
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(device, format!("{}: {error}", path.display()))),
    }
}

fn failed(device: &str, reason: String) -> EngineError {
    EngineError::Device { name: device.to_owned(), reason }
}

fn vulkan_of<'a>(devices: &'a Devices, name: &str) -> Result<&'a Vulkan, EngineError> {
    devices.vulkan().ok_or_else(|| failed(name, "only Vulkan devices are tuned".to_owned()))
}

impl ModelFile {
    /// Times the variants of the kernels that this model runs on a Vulkan device, and keeps the fastest. `batches` are
    /// the numbers of sequences that decode at once; where there are none, all that kernels tell apart. `progress` hears
    /// (steps done, steps of all).
    ///
    /// # Errors
    /// Where there is no such device, it has no clock, or it fails; where what was chosen computes something else.
    pub fn tune(
        &self,
        options: &LoadOptions,
        batches: &[usize],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<TuneReport, EngineError> {
        if let Some(batch) = batches.iter().find(|batch| !(1..=MOST).contains(*batch)) {
            return Err(EngineError::Setting {
                name: "batch",
                value: batch.to_string(),
                expected: "1 to 16: with more sequences kernels have no variants, or are those of prompts",
            });
        }
        let graph = load::build(self, false)?.graph;
        let mut devices = Devices::open(&options.device, &DeviceOptions { profile: true, ..options.devices() })?;
        let vulkan = vulkan_of(&devices, &options.device)?;
        if vulkan.capabilities().tick_ns <= 0.0 {
            return Err(failed(&options.device, "it has no clock to time kernels by".to_owned()));
        }
        let (before, build_id) = (vulkan.choices(), vulkan.build_id());
        vulkan.choose(Choices::new());
        let mut found = self_check::check(&mut devices, &graph, options.arithmetic, options.kv)?;
        let mut notices = devices.notices().to_vec();
        notices.append(&mut found.notices);
        notices.append(&mut found.excluded);
        let read_bytes_per_s = devices.measure().map(|rates| rates.read_bytes_per_s);
        let vulkan = vulkan_of(&devices, &options.device)?;
        // Opened anew, it has other capabilities, of which what was chosen says nothing.
        let before = if vulkan.build_id() == build_id { before } else { Choices::new() };
        let cases = distinct(check::cases(&graph));
        let mut tuner = Tuner { vulkan, times: BTreeMap::new(), excluded: BTreeSet::new() };
        tuner.run(&cases, options, batches, progress)?;
        let (kernels, choices) = tuner.chosen(read_bytes_per_s, before);
        let excluded = tuner.excluded.into_iter().map(|(_, reason)| reason).collect();
        // Not trusted before the CPU agrees.
        vulkan.choose(choices.clone());
        let mut known = Known::of(vulkan, &mut notices);
        let with = (options.arithmetic, options.kv);
        let oracle = devices.oracle()?;
        let differs = self_check::check_cases(&cases, vulkan, &*oracle, with, &mut known)?;
        if let Some((case, reason)) = differs.first() {
            let reason =
                format!("what was chosen for {} differs from the CPU's ({reason}); nothing is kept", case.name);
            return Err(failed(&options.device, reason));
        }
        known.keep(vulkan);
        let file = vulkan.cache_file("tuning");
        if let Some(path) = &file {
            write(path, vulkan.build_id(), &choices)
                .map_err(|error| failed(&options.device, format!("{}: {error}", path.display())))?;
        }
        let device = vulkan.capabilities().name.clone();
        Ok(TuneReport { device, read_bytes_per_s, kernels, excluded, notices, file })
    }
}

/// Cases whose products another has as well are left out.
fn distinct(cases: Vec<Case>) -> Vec<Case> {
    let mut met = BTreeSet::new();
    cases.into_iter().filter(|case| met.insert(case.matrices())).collect()
}

/// What was measured of a kernel's variant.
#[derive(Clone, Copy, Debug)]
struct Measured {
    ns: f64,
    bytes: u64,
    ops: u64,
    is_rule: bool,
}

struct Tuner<'a> {
    vulkan: &'a Vulkan,
    times: BTreeMap<String, BTreeMap<Variant, Measured>>,
    /// Variants of kernels that computed something else, and what is to be told.
    excluded: BTreeSet<(Vec<(String, Variant)>, String)>,
}

/// A step that is timed.
#[derive(Clone, Copy, Debug)]
enum Timed {
    Decode(usize),
    Prompt(usize),
}

impl Timed {
    fn run(self, trial: &mut Trial) -> Result<Vec<f32>, EngineError> {
        let logits = match self {
            Timed::Decode(sequences) => trial.decode(sequences),
            Timed::Prompt(tokens) => trial.prompt(tokens),
        };
        Ok(logits?.to_vec())
    }

    fn rows(self) -> usize {
        match self {
            Timed::Decode(rows) | Timed::Prompt(rows) => rows,
        }
    }
}

impl Tuner<'_> {
    fn run(
        &mut self,
        cases: &[Case],
        options: &LoadOptions,
        batches: &[usize],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), EngineError> {
        let has_matrices = self.vulkan.uses("cooperative-matrix");
        let few = if has_matrices { FEW } else { SEQUENCES.len() };
        let batches = if batches.is_empty() { &SEQUENCES[..few] } else { batches };
        let mut steps: Vec<Timed> = batches.iter().map(|count| Timed::Decode(*count)).collect();
        if has_matrices {
            steps.push(Timed::Prompt(options.chunk));
        }
        let (mut done, total) = (0, (cases.len() * steps.len()) as u64);
        for case in cases {
            let prompt = if has_matrices { options.chunk } else { 1 };
            let mut trial = case.trial(self.vulkan, options.arithmetic, options.kv, prompt)?;
            for step in &steps {
                progress(done, total);
                done += 1;
                if let Some(trial) = &mut trial {
                    let timed = self.step(trial, *step, &case.name);
                    self.vulkan.try_variant(None);
                    timed?;
                }
            }
        }
        progress(total, total);
        Ok(())
    }

    /// Times all variants in a step.
    fn step(&mut self, trial: &mut Trial, step: Timed, name: &str) -> Result<(), EngineError> {
        self.vulkan.try_variant(Some(0));
        let want = step.run(trial)?;
        let mut wrong = BTreeSet::new();
        for round in 0..ROUNDS {
            let mut place = 0;
            while place < self.vulkan.variants().max(1) {
                self.vulkan.try_variant(Some(place));
                let got = step.run(trial)?;
                let mut ran: Vec<(String, Variant)> =
                    self.vulkan.profile().into_iter().filter_map(|time| time.choice).collect();
                if let (0, Err(error)) = (round, trial.compare(&got, &want, step.rows())) {
                    wrong.insert(place);
                    ran.retain(|(kernel, variant)| !self.is_rule(kernel, variant));
                    let variants: BTreeSet<String> = ran.iter().map(|(_, variant)| variant.to_string()).collect();
                    let variants = variants.into_iter().collect::<Vec<_>>().join(", ");
                    self.excluded.insert((ran, format!("{name}: {error}: excluded are {variants}")));
                }
                if !wrong.contains(&place) {
                    self.time(trial, step, place == 0)?;
                }
                place += 1;
            }
        }
        Ok(())
    }

    /// Whether a variant is the rule's, whose step was timed first.
    fn is_rule(&self, kernel: &str, variant: &Variant) -> bool {
        self.times.get(kernel).and_then(|variants| variants.get(variant)).is_some_and(|measured| measured.is_rule)
    }

    fn time(&mut self, trial: &mut Trial, step: Timed, is_rule: bool) -> Result<(), EngineError> {
        let begin = std::time::Instant::now();
        step.run(trial)?;
        let once = begin.elapsed().as_secs_f64();
        for _ in 1..((STEPS_S / once) as usize).clamp(STEPS, 100) {
            step.run(trial)?;
        }
        for time in self.vulkan.profile() {
            let Some((kernel, variant)) = time.choice else { continue };
            let ns = time.total_ns / time.runs.max(1) as f64;
            let new = Measured { ns, bytes: time.bytes, ops: time.ops, is_rule };
            let own = self.times.entry(kernel).or_default().entry(variant).or_insert(new);
            own.ns = own.ns.min(ns);
            // Where a kernel has fewer variants than others the rule's runs in their place.
            own.is_rule |= is_rule;
        }
        Ok(())
    }

    /// The kernels, and what is chosen: what was before, but for the kernels that were timed now.
    fn chosen(&self, read_bytes_per_s: Option<f64>, before: Choices) -> (Vec<TunedKernel>, Choices) {
        let mut choices = before;
        let mut kernels = Vec::new();
        let is_excluded = |kernel: &String, variant: &Variant| {
            self.excluded.iter().any(|(ran, _)| ran.iter().any(|(own, bad)| (own, bad) == (kernel, variant)))
        };
        for (kernel, variants) in &self.times {
            let Some((rule, by_rule)) = variants.iter().find(|(_, measured)| measured.is_rule) else { continue };
            let others = variants.iter().filter(|(variant, measured)| {
                !measured.is_rule && measured.ns * GAIN < by_rule.ns && !is_excluded(kernel, variant)
            });
            let (chosen, best) = others.min_by(|a, b| a.1.ns.total_cmp(&b.1.ns)).unwrap_or((rule, by_rule));
            if best.is_rule {
                choices.remove(kernel);
            } else {
                choices.insert(kernel.clone(), *chosen);
            }
            kernels.push(TunedKernel {
                kernel: kernel.clone(),
                variants: variants.len(),
                rule: rule.to_string(),
                rule_us: by_rule.ns / 1e3,
                chosen: chosen.to_string(),
                chosen_us: best.ns / 1e3,
                bytes: best.bytes,
                ops: best.ops,
                percent_of_bandwidth: read_bytes_per_s.map(|roof| 100.0 * best.bytes as f64 / (best.ns / 1e9) / roof),
            });
        }
        (kernels, choices)
    }
}

#[cfg(test)]
mod tests;
