//! The fixtures of every text family on the CPU device, with its default arithmetic and with `f32`, on every
//! instruction set of this machine; and placed half on one device, half on another.

use std::sync::Arc;

use cpu::{Cpu, CpuOptions};
use files::hf::HfDir;
use graph::Graph;
use models::{BuildOptions, Source};
use testkit::Bound;

/// A CPU device with this instruction set, or the portable one where the machine lacks it.
fn cpu(isa: &str) -> Cpu {
    let open = |isa: &str| Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa.to_owned()) });
    open(isa).or_else(|_| open("portable")).expect("the portable kernels run anywhere")
}

fn build(dir: &HfDir) -> Arc<Graph> {
    models::build(Source::HuggingFace(dir), BuildOptions { taps: true }).expect("fixtures are whole").graph
}

mod fast {
    testkit::text_fixtures!(super::cpu("avx512"), super::build, super::Bound::FAST);
}
mod fast_avx2 {
    testkit::text_fixtures!(super::cpu("avx2"), super::build, super::Bound::FAST);
}
mod fast_portable {
    testkit::text_fixtures!(super::cpu("portable"), super::build, super::Bound::FAST);
}
mod f32 {
    testkit::text_fixtures!(super::cpu("avx512"), super::build, super::Bound::F32);
}
