//! `unicorn devices`: what this machine computes with.

use std::process::ExitCode;

use engine::devices::{CpuReport, DeviceOptions, VulkanReport, cpu_report, vulkan_reports};
use serde_json::json;

use crate::{
    args::CpuArgs,
    output::{bytes, gb_per_s, one_line, print, print_json},
};

/// Shows the devices of this machine, and measures them
///
/// For the CPU: model, cores, instruction sets that the kernels use, memory, and what all threads together reach: the read
/// bandwidth, which bounds the speed of decoding, and the rate of 8-bit integer products, which bounds that of prefill.
/// For each Vulkan device: driver, memory, what its kernels are chosen by, and its read bandwidth; software devices are
/// listed, and used only when named.
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
        let report = cpu_report(&DeviceOptions { threads: threads.map(usize::from), isa, ..DeviceOptions::default() })?;
        let vulkan = vulkan_reports().map_err(|error| error.to_string());
        if self.json {
            let mut cpu = serde_json::to_value(&report)?;
            cpu["name"] = json!("cpu");
            let mut devices = vec![cpu];
            for report in vulkan.iter().flatten() {
                let mut device = serde_json::to_value(report)?;
                device["name"] = json!(report.device);
                devices.push(device);
            }
            print_json(&json!({ "devices": devices }))?;
        } else {
            let vulkan = match &vulkan {
                Ok(list) => list.iter().map(vulkan_text).collect(),
                Err(reason) => format!("vulkan         {}\n", one_line(reason)),
            };
            print(&format!("{}{vulkan}{REST}", text(&report)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

const REST: &str = "\
reference      plain loops in f32, slow: the oracle of the others
not in this build: XDNA NPUs
";

fn vulkan_text(report: &VulkanReport) -> String {
    if report.product.is_empty() {
        let reason = report.error.as_deref().unwrap_or_default();
        return format!("{:<14} cannot be used: {}\n", report.device, one_line(reason));
    }
    let reads = match (report.read_bytes_per_s, &report.error) {
        (Some(rate), _) => format!("{} (measured)", gb_per_s(rate)),
        (None, Some(error)) => format!("not measured: {}", one_line(error)),
        (None, None) => "not measured: it is software, for tests".to_owned(),
    };
    format!(
        "{:<14} {} ({})\n  \
           driver       {}, Vulkan {}\n  \
           kernels      subgroups of {}; {}\n  \
           memory       {}, {} available\n  \
           reads        {reads}\n",
        report.device,
        one_line(&report.product),
        report.kind,
        one_line(&report.driver),
        report.api,
        report.subgroup,
        if report.features.is_empty() { "plain".to_owned() } else { report.features.join(", ") },
        bytes(report.memory_total_bytes),
        bytes(report.memory_available_bytes),
    )
}

fn text(cpu: &CpuReport) -> String {
    let cores = cpu.cores.map(|cores| format!("{cores} cores, ")).unwrap_or_default();
    format!(
        "cpu            {}\n  \
           processors   {cores}{} logical; {} threads used\n  \
           kernels      {} (the processor has {})\n  \
           memory       {}, {} available\n  \
           reads        {} (measured, all threads)\n  \
           int8         {}\n",
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
