//! What the processor and its memory are, how fast memory reads, and how fast registers multiply.

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

/// Rounds of the loop in a pass of [`int8_rate`]: some 5 ms.
#[cfg(target_arch = "x86_64")]
const ROUNDS: usize = 1 << 20;

/// Operations a second on 8-bit integers that all threads together reach on registers alone, a multiply-add counted as
/// two; the best of several passes. AVX-512: `vpdpbusd`. AVX2: `vpmaddubsw`, and `vpmaddwd` and `vpaddd` that its
/// 16-bit sums need. `None` for portable kernels, which no instruction stands for.
pub(crate) fn int8_rate(pool: &mut Pool, isa: Isa) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    {
        let ops = match isa {
            Isa::Avx512(_) => x86::OPS_AVX512,
            Isa::Avx2(_) => x86::OPS_AVX2,
            _ => return None,
        };
        let round = || match isa {
            // SAFETY: the value in the variant exists only where its features were detected.
            Isa::Avx512(_) => unsafe { x86::dot_avx512() },
            // SAFETY: as above.
            Isa::Avx2(_) => unsafe { x86::dot_avx2() },
            _ => {}
        };
        let mut best = 0.0f64;
        for _ in 0..5 {
            let start = Instant::now();
            pool.run(&|_| round());
            best = best.max((pool.threads() * ROUNDS * ops) as f64 / start.elapsed().as_secs_f64());
        }
        Some(best)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (pool, isa);
        None
    }
}

/// Loops of the instruction that the kernels multiply by, on enough registers to hide its latency.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        arch::{asm, x86_64::*},
        hint::black_box,
    };

    use super::ROUNDS;

    const LANES_AVX512: usize = 16;
    const LANES_AVX2: usize = 6;
    /// Operations of a round: 64 multiply-adds a register.
    pub(super) const OPS_AVX512: usize = LANES_AVX512 * 64 * 2;
    /// Operations of a round: 32 multiply-adds a register.
    pub(super) const OPS_AVX2: usize = LANES_AVX2 * 32 * 2;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    pub(super) fn dot_avx512() {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [_mm512_setzero_si512(); LANES_AVX512];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn dot_avx2() {
        let mut a = _mm256_set1_epi8(black_box(3));
        let b: [__m256i; LANES_AVX2] = std::array::from_fn(|lane| _mm256_set1_epi8(black_box(lane as i8 - 3)));
        let ones = _mm256_set1_epi16(black_box(1));
        let mut sums = [_mm256_setzero_si256(); LANES_AVX2];
        for _ in 0..ROUNDS {
            // SAFETY: no instruction at all. The compiler no longer knows `a`, and so cannot take the products, which
            // are the same each round, out of the loop.
            unsafe { asm!("/* {0} */", inout(ymm_reg) a, options(nomem, nostack, preserves_flags)) };
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
            }
        }
        black_box(sums);
    }
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

    #[test]
    fn integer_rates_are_what_instructions_can_have() {
        let mut pool = Pool::new(2).unwrap();
        for name in ["avx512", "avx2", "portable"] {
            let Some(isa) = Isa::named(name) else { continue };
            let rate = int8_rate(&mut pool, isa);
            // Two threads of 10 GHz with two of the widest instructions a cycle would not reach the upper bound. A loop
            // that the compiler emptied would.
            assert!(rate.is_none_or(|rate| (1e8..1e13).contains(&rate)), "{name}: {rate:?}");
            assert_eq!(rate.is_none(), name == "portable");
        }
    }
}
