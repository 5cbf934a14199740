//! `unicorn tune`: the fastest variants of a GPU's kernels, timed on it.

use std::process::ExitCode;

use engine::{LoadOptions, ModelFile, TuneReport, TunedKernel, forget_tuning};

use crate::{
    args::{ArithmeticName, ModelArg, parse_count},
    model::{naming, open},
    output::{gb_per_s, note, one_line, percent_of, print, print_json},
    progress::{Bar, Unit},
};

/// Times variants of a GPU's kernels, and keeps the fastest
///
/// Some kernels of a Vulkan device can divide their work in several ways that compute the same. A rule picks one by the
/// shape and the kind of device; this command times all of them on the device, in the shapes of a model with random
/// weights, and keeps what is faster beside the pipeline cache, by device, driver and version. Every variant is checked.
/// Models that are loaded from then on take what was chosen; nothing is timed at load. It takes some minutes, most of
/// which the driver compiles. Run it on an idle machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn tune -m model.gguf
  unicorn tune --shape gemma3-4b:q4_0
  unicorn tune --reset")]
pub(crate) struct TuneArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Takes the shape of a published model and of a type, as gemma3-27b:q4_0, in place of a file
    #[arg(long, value_name = "SHAPE:TYPE", conflicts_with = "model")]
    shape: Option<String>,
    /// The device: vulkan (the first that is no software), or vulkan:N by its number in `unicorn devices`
    #[arg(long, value_name = "NAME", default_value = "vulkan")]
    device: String,
    /// Forgets what was chosen for the device
    #[arg(long, conflicts_with_all = ["model", "shape"])]
    reset: bool,
    /// Sequences that decode at once, for each of a list [default: all numbers that kernels tell apart]
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', value_parser = parse_count)]
    batches: Vec<usize>,
    /// Tokens of the prompt that is timed
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = parse_count)]
    chunk: usize,
    /// How products are computed, as models will be loaded
    #[arg(long, value_enum, default_value = "fast")]
    arithmetic: ArithmeticName,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

impl TuneArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        if self.reset {
            let line = match forget_tuning(&self.device)? {
                Some(path) => format!("{} is removed: kernels are chosen by rule\n", path.display()),
                None => "nothing was chosen: kernels are chosen by rule\n".to_owned(),
            };
            print(&line)?;
            return Ok(ExitCode::SUCCESS);
        }
        let file = match &self.shape {
            Some(shape) => ModelFile::shape(shape, None)?,
            None => open(self.model.model.as_deref())?,
        };
        let options = LoadOptions {
            device: self.device.clone(),
            chunk: self.chunk,
            arithmetic: self.arithmetic.into(),
            kv: self.arithmetic.kv(),
            ..LoadOptions::default()
        };
        let mut bar = Bar::new("tuning", Unit::Count, true);
        let report = file.tune(&options, &self.batches, &mut |done, total| bar.at(done, total));
        bar.clear();
        let report = report.map_err(|error| naming(error, file.short_name()))?;
        if self.json {
            print_json(&report)?;
        } else {
            print(&text(&report))?;
        }
        for line in report.notices.iter().chain(&report.excluded) {
            note(format_args!("note: {}", one_line(line)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(report: &TuneReport) -> String {
    let roof = report.read_bytes_per_s.map_or("reading memory was not measured".to_owned(), |rate| {
        format!("reading memory reaches {}", gb_per_s(rate))
    });
    let mut text = format!("{}, {roof}; random weights, kernels timed by the device's clock\n\n", report.device);
    let width = report.kernels.iter().map(|kernel| kernel.kernel.len()).max().unwrap_or(0).max("kernel".len());
    text += &format!("{:width$}  {:>10}  {:>10}  {:>6}  chosen of\n", "kernel", "rule us", "chosen us", "faster");
    for kernel in &report.kernels {
        text += &line(kernel, width);
    }
    if report.kernels.is_empty() {
        text += "no kernel of this model has variants on this device\n";
    }
    let changed = report.kernels.iter().filter(|kernel| kernel.chosen != kernel.rule).count();
    text += &format!("\n{changed} of {} kernels take another variant than the rule's\n", report.kernels.len());
    if let Some(path) = &report.file {
        text += &format!("kept in {}\n", path.display());
    }
    text
}

fn line(kernel: &TunedKernel, width: usize) -> String {
    let TunedKernel { kernel: name, rule_us, chosen_us, .. } = kernel;
    let faster = 100.0 * (rule_us / chosen_us - 1.0);
    // Products of many rows are bound by arithmetic, whose roof is not measured.
    let reached = match (name.starts_with("gemv"), kernel.percent_of_bandwidth) {
        (true, Some(percent)) => percent_of(percent, "the bandwidth"),
        (true, None) => gb_per_s(1e6 * kernel.bytes as f64 / chosen_us),
        (false, _) => format!("{:.2} Tops/s", kernel.ops as f64 / chosen_us / 1e6),
    };
    let what = if kernel.chosen == kernel.rule { "the rule's".to_owned() } else { kernel.chosen.clone() };
    let of = kernel.variants;
    format!("{name:width$}  {rule_us:>10.1}  {chosen_us:>10.1}  {faster:>4.0} %  {of}: {what}, {reached}\n")
}
