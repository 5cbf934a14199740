//! The fixtures of every text family on the CPU device: on each instruction set, with its default arithmetic and with
//! `f32`. A set that this machine lacks is skipped, and says so.

use std::sync::Arc;

use cpu::{Cpu, CpuOptions};
use files::hf::HfDir;
use graph::Graph;
use models::{BuildOptions, Source};
use testkit::Bound;

/// A CPU device with this instruction set; `None` where the machine lacks it. The portable kernels run anywhere.
fn cpu(isa: &str) -> Option<Cpu> {
    match Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa.to_owned()) }) {
        Ok(cpu) => Some(cpu),
        Err(error) if isa == "portable" => panic!("{error}"),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn build(dir: &HfDir) -> Arc<Graph> {
    models::build(Source::HuggingFace(dir), BuildOptions { taps: true, ..BuildOptions::default() })
        .expect("fixtures are whole")
        .graph
}

mod fast_avx512 {
    testkit::text_fixtures!(super::cpu("avx512"), super::build, super::Bound::FAST);
}
mod fast_avx2 {
    testkit::text_fixtures!(super::cpu("avx2"), super::build, super::Bound::FAST);
}
mod fast_portable {
    testkit::text_fixtures!(super::cpu("portable"), super::build, super::Bound::FAST);
}
mod f32_avx512 {
    testkit::text_fixtures!(super::cpu("avx512"), super::build, super::Bound::F32);
}
mod f32_avx2 {
    testkit::text_fixtures!(super::cpu("avx2"), super::build, super::Bound::F32);
}
mod f32_portable {
    testkit::text_fixtures!(super::cpu("portable"), super::build, super::Bound::F32);
}
