//! `unicorn devices`: what this machine computes with.

use std::process::ExitCode;

use engine::devices::{CpuReport, DeviceOptions, cpu_report};
use serde_json::json;

use crate::{
    args::CpuArgs,
    output::{bytes, gb_per_s, one_line, print, print_json},
};

/// Shows the devices of this machine, and measures them
///
/// For the CPU: model, cores, instruction sets that the kernels use, memory, and what all threads together reach: the read
/// bandwidth, which bounds the speed of decoding, and the rate of 8-bit integer products, which bounds that of prefill.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn devices
  unicorn devices --threads 4 --json")]
pub(crate) struct DevicesArgs {
    #[command(flatten)]
    cpu: CpuArgs,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

impl DevicesArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let CpuArgs { threads, isa } = self.cpu;
        let report = cpu_report(&DeviceOptions { threads: threads.map(usize::from), isa })?;
        if self.json {
            let mut cpu = serde_json::to_value(&report)?;
            cpu["name"] = json!("cpu");
            print_json(&json!({ "devices": [cpu] }))?;
        } else {
            print(&text(&report))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(cpu: &CpuReport) -> String {
    let cores = cpu.cores.map(|cores| format!("{cores} cores, ")).unwrap_or_default();
    format!(
        "cpu            {}\n  \
           processors   {cores}{} logical; {} threads used\n  \
           kernels      {} (the processor has {})\n  \
           memory       {}, {} available\n  \
           reads        {} (measured, all threads)\n  \
           int8         {}\n\
         reference      plain loops in f32, slow: the oracle of the others\n\
         not in this build: Vulkan GPUs, XDNA NPUs\n",
        one_line(&cpu.model),
        cpu.processors,
        cpu.threads,
        cpu.isa,
        if cpu.features.is_empty() { "none of the known sets".to_owned() } else { cpu.features.join(" ") },
        bytes(cpu.memory_total_bytes),
        bytes(cpu.memory_available_bytes),
        gb_per_s(cpu.read_bytes_per_s),
        cpu.int8_ops_per_s.map_or("no instruction for it".to_owned(), |rate| {
            format!("{:.0} GOPS (products of 8-bit integers on registers, measured, all threads)", rate / 1e9)
        }),
    )
}
