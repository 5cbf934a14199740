//! What the processor and its memory are, and how fast memory reads.

use std::{collections::BTreeSet, sync::Mutex, time::Instant};

use graph::Memory;
use tensor::AlignedBuf;

use crate::{
    isa::{Isa, for_isa},
    pool::Pool,
};

/// A description of the processor, from the system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuInfo {
    /// The model name.
    pub model: String,
    /// Logical processors this process may use.
    pub processors: usize,
    /// Cores behind them; `None` where the system does not say.
    pub cores: Option<usize>,
    /// Instruction sets that the kernels could use.
    pub features: Vec<&'static str>,
}

impl CpuInfo {
    /// Asks the system.
    pub fn query() -> CpuInfo {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": ")).map(|(_, v)| v)
        };
        CpuInfo {
            model: field("model name").unwrap_or("unknown").to_owned(),
            processors: available_threads(),
            cores: physical_cores(&text),
            features: features(),
        }
    }
}

/// Pairs of package and core in `/proc/cpuinfo`.
fn physical_cores(text: &str) -> Option<usize> {
    let mut cores = BTreeSet::new();
    let mut package = "";
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            "physical id" => package = value.trim(),
            "core id" => {
                cores.insert((package, value.trim()));
            }
            _ => {}
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! probe {
            ($($name:tt)*) => { $(if is_x86_feature_detected!($name) { found.push($name); })* };
        }
        probe!("avx" "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512dq" "avx512vnni" "avx512bf16");
    }
    found
}

/// Threads to start by default: one a core, since two threads of a core share the units that multiply; fewer where
/// this process may use fewer processors.
pub(crate) fn available_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    physical_cores(&text).map_or(allowed, |cores| cores.min(allowed)).max(1)
}

/// Memory of the system; within a control group, what the group may use.
pub(crate) fn memory() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let mut memory =
        Memory { total_bytes: field("MemTotal:").unwrap_or(0), available_bytes: field("MemAvailable:").unwrap_or(0) };
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    if let (Some(limit), Some(used)) = (read("memory.max"), read("memory.current")) {
        memory.total_bytes = memory.total_bytes.min(limit);
        memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
    }
    memory
}

/// Bytes that [`read_bandwidth`] reads a pass: well beyond the caches.
const BUFFER_BYTES: usize = 256 << 20;

/// Bytes a second that all threads together read from memory; the best of several passes.
pub(crate) fn read_bandwidth(pool: &mut Pool, isa: Isa) -> f64 {
    let buffer = Mutex::new(AlignedBuf::zeroed(BUFFER_BYTES));
    let threads = pool.threads();
    let part =
        |thread: usize| BUFFER_BYTES / 64 * thread / threads * 64..BUFFER_BYTES / 64 * (thread + 1) / threads * 64;
    // Touched first, or every page would be the one page of zeros.
    buffer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter_mut().step_by(4096).for_each(|b| *b = 1);
    let buffer = buffer.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let buffer = &buffer;
    let mut best = 0.0f64;
    for _ in 0..5 {
        let start = Instant::now();
        pool.run(&|thread| {
            let words = &buffer.as_slice::<u64>()[part(thread).start / 8..part(thread).end / 8];
            std::hint::black_box(sum(isa, words));
        });
        best = best.max(BUFFER_BYTES as f64 / start.elapsed().as_secs_f64());
    }
    best
}

for_isa! {
    /// The sum of all words: a loop that reads and little else.
    fn sum(words: &[u64]) -> u64 = plain_sum;
}

#[inline(always)]
fn plain_sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_once() {
        let text = "physical id\t: 0\ncore id\t\t: 0\n\nphysical id\t: 0\ncore id\t\t: 0\n\nphysical id\t: 0\ncore id\t\t: 1\n";
        assert_eq!(physical_cores(text), Some(2));
        assert_eq!(physical_cores(""), None);
        assert!(available_threads() >= 1);
    }

    #[test]
    fn bandwidth_is_a_number_that_memory_can_have() {
        let bandwidth = read_bandwidth(&mut Pool::new(2).unwrap(), Isa::detect());
        assert!((1e8..1e13).contains(&bandwidth), "{bandwidth}");
    }
}
