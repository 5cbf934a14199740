//! The conformance suite on every instruction set this machine has, with one thread and with several.

use cpu::{Cpu, CpuOptions};

fn cpu(isa: &str, threads: usize) -> Option<Cpu> {
    let device = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa.to_owned()) });
    if device.is_err() {
        println!("skipped: no {isa} here");
    }
    device.ok()
}

/// A device, or the portable one where this machine lacks the instruction set (then tested twice).
fn or_portable(isa: &str, threads: usize) -> Cpu {
    cpu(isa, threads).or_else(|| cpu("portable", threads)).expect("the portable kernels run anywhere")
}

mod avx512 {
    graph::conformance!(super::or_portable("avx512", 2));
}
mod avx512_one_thread {
    graph::conformance!(super::or_portable("avx512", 1));
}
mod avx2 {
    graph::conformance!(super::or_portable("avx2", 3));
}
mod portable {
    graph::conformance!(super::or_portable("portable", 2));
}
