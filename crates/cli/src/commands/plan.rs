//! `unicorn plan`: what would run where, in how much memory.

use std::process::ExitCode;

use engine::{LoadOptions, ModelFile, check_fits, check_strict, devices::unused_gpu};
use serde_json::json;

use crate::{
    args::{DraftArgs, LoadArgs, ModelArg},
    model::{naming, open},
    output::{one_line, print, print_json},
    progress::announced,
};

/// Shows what of a model would run where, and in how much memory
///
/// Places every operation on a device without loading anything: weights, KV cache at the context asked for, activations,
/// what does not fit and by how much, and an estimate of the time that a token and a prompt take at least, by bandwidths
/// and rates that are measured now, for some tenths of a second. Exits with 1 when it does not fit, and with --strict when
/// anything falls to another device.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn plan -m model.gguf
  unicorn plan -m model.gguf --ctx 32768 --cpu-memory 8GiB
  unicorn plan -m model.gguf --json")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    drafts: DraftArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl PlanArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        show(&open(self.model.model.as_deref())?, &self.load.generating(&self.drafts), self.json)
    }
}

/// Prints the plan; an error follows where it does not fit.
pub(crate) fn show(file: &ModelFile, options: &LoadOptions, as_json: bool) -> anyhow::Result<ExitCode> {
    let planned = announced("measuring the devices...", || file.plan(options, true));
    let (info, plan) = planned.map_err(|error| naming(error, file.short_name()))?;
    if as_json {
        let rates = plan.bytes.iter().map(|device| device.rates.map(|rates| rates.read_bytes_per_s));
        print_json(&json!({
            "model": info,
            "plan": plan.to_json(),
            "read_bytes_per_s": rates.collect::<Vec<_>>(),
        }))?;
    } else {
        print(&format!(
            "{} ({}), {} layers, vocabulary {}\n\n{plan}{}",
            one_line(&info.name),
            one_line(&info.architecture),
            info.layers,
            info.vocab,
            plan.estimate()
        ))?;
        for notice in &info.notices {
            print(&format!("note: {}\n", one_line(notice)))?;
        }
        if let Some(gpu) = unused_gpu(&options.device) {
            print(&format!("note: {}\n", one_line(&gpu)))?;
        }
    }
    check_strict(&plan, options).map_err(|error| naming(error, file.short_name()))?;
    check_fits(&plan).map_err(|error| naming(error, file.short_name()))?;
    Ok(ExitCode::SUCCESS)
}
