//! The plan in words and in JSON.

use std::fmt;

use crate::{
    estimate::Estimate,
    graph::{Graph, Part},
    plan::{Plan, Transfer},
};

/// Nodes of one part and the layers they belong to, by device.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct PartRow {
    pub(crate) part: Part,
    pub(crate) operations: Vec<usize>,
    pub(crate) layers: Vec<usize>,
}

pub(crate) fn summarise(graph: &Graph, placement: &[usize], devices: usize) -> Vec<PartRow> {
    Part::ALL
        .into_iter()
        .map(|part| {
            let mut operations = vec![0; devices];
            let mut layers = vec![std::collections::BTreeSet::new(); devices];
            for (node, &device) in graph.nodes().iter().zip(placement).filter(|(node, _)| node.part == part) {
                operations[device] += 1;
                layers[device].extend(node.layer);
            }
            PartRow { part, operations, layers: layers.iter().map(|set| set.len()).collect() }
        })
        .collect()
}

/// Bytes for a person: binary units, three digits.
pub fn bytes_text(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A budget: the reference device has none.
fn budget_text(budget: u64) -> String {
    if budget == u64::MAX { "no limit".to_owned() } else { bytes_text(budget) }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14} {:<12} {:>10} {:>7} {:>12}", "part", "device", "operations", "layers", "weights")?;
        for row in &self.summary {
            for (device, &operations) in row.operations.iter().enumerate().filter(|(_, n)| **n > 0) {
                let weights = self.bytes[device].weights.get(&row.part).copied().unwrap_or(0);
                writeln!(
                    f,
                    "{:<14} {:<12} {:>10} {:>7} {:>12}",
                    row.part.name(),
                    self.devices[device],
                    operations,
                    row.layers[device],
                    bytes_text(weights)
                )?;
            }
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<12} {:>10} {:>10} {:>10} {:>12} {:>10} {:>10}",
            "device", "weights", "in place", "KV cache", "activations", "sum", "budget"
        )?;
        let used = self.used_devices();
        for device in self.bytes.iter().filter(|device| used.contains(&&*device.device)) {
            let short = match device.short_by() {
                0 => String::new(),
                short => format!("  DOES NOT FIT: {} short", bytes_text(short)),
            };
            writeln!(
                f,
                "{:<12} {:>10} {:>10} {:>10} {:>12} {:>10} {:>10}{short}",
                device.device,
                bytes_text(device.weights_total()),
                bytes_text(device.mapped),
                bytes_text(device.kv),
                bytes_text(device.activations),
                bytes_text(device.total()),
                budget_text(device.budget),
            )?;
        }
        for device in self.bytes.iter().filter(|device| device.looked_up > 0) {
            let table = bytes_text(device.looked_up);
            writeln!(f, "{}: embeddings of {table} are looked up in the file and need not fit", device.device)?;
        }
        writeln!(f)?;
        writeln!(f, "{}", self.context_line())?;
        for fallback in &self.fallbacks {
            writeln!(f, "fallback: {fallback}")?;
        }
        if self.stages.len() > 1 {
            writeln!(f, "{} stages, one after another", self.stages.len())?;
        }
        for Transfer { from, to, values, bytes_per_row } in &self.transfers {
            let (from, to, bytes) = (&self.devices[*from], &self.devices[*to], bytes_text(*bytes_per_row));
            let values = if *values == 1 { "1 value".to_owned() } else { format!("{values} values") };
            writeln!(f, "transfer: {from} to {to}, {values} a step, {bytes} a token")?;
        }
        Ok(())
    }
}

impl Plan {
    /// The context and where it comes from, in one line.
    pub fn context_line(&self) -> String {
        let context = self.limits.context;
        let why = match self.context_asked {
            Some(_) => "as asked".to_owned(),
            None if self.is_short() => format!("the least that is proposed of the model's {}", self.model_context),
            None if context == self.model_context => "the model's own".to_owned(),
            None => format!("what memory allows of the model's {}", self.model_context),
        };
        let sequences =
            if self.sequences == 1 { String::new() } else { format!(", at most {} sequences at once", self.sequences) };
        format!("context: {context} tokens{sequences} ({why}); prefill in chunks of {}", self.limits.tokens)
    }

    /// The plan as JSON.
    pub fn to_json(&self) -> PlanJson<'_> {
        PlanJson {
            context: self.limits.context,
            model_context: self.model_context,
            sequences: self.sequences,
            step_tokens: self.limits.tokens,
            kv_type: self.kv.dtype,
            arithmetic: self.arithmetic,
            fits: !self.is_short(),
            devices: self
                .bytes
                .iter()
                .map(|bytes| DeviceJson {
                    bytes,
                    weights_total: bytes.weights_total(),
                    total: bytes.total(),
                    short_by: bytes.short_by(),
                })
                .collect(),
            placement: self
                .summary
                .iter()
                .flat_map(|row| {
                    row.operations.iter().enumerate().filter(|(_, n)| **n > 0).map(|(device, &operations)| {
                        PlacementJson {
                            part: row.part,
                            device: &self.devices[device],
                            operations,
                            layers: row.layers[device],
                        }
                    })
                })
                .collect(),
            transfers: self
                .transfers
                .iter()
                .map(|transfer| TransferJson {
                    from: &self.devices[transfer.from],
                    to: &self.devices[transfer.to],
                    values: transfer.values,
                    bytes_per_token: transfer.bytes_per_row,
                })
                .collect(),
            fallbacks: &self.fallbacks,
            estimate: self.estimate(),
        }
    }
}

/// The serialised form of a [`Plan`]; all sizes in bytes.
#[derive(Debug, serde::Serialize)]
pub struct PlanJson<'a> {
    context: usize,
    model_context: usize,
    sequences: usize,
    step_tokens: usize,
    kv_type: crate::KvType,
    arithmetic: crate::Arithmetic,
    fits: bool,
    devices: Vec<DeviceJson<'a>>,
    placement: Vec<PlacementJson<'a>>,
    transfers: Vec<TransferJson<'a>>,
    fallbacks: &'a [String],
    estimate: Estimate,
}

#[derive(Debug, serde::Serialize)]
struct DeviceJson<'a> {
    #[serde(flatten)]
    bytes: &'a crate::DeviceBytes,
    weights_total: u64,
    total: u64,
    short_by: u64,
}

#[derive(Debug, serde::Serialize)]
struct PlacementJson<'a> {
    part: Part,
    device: &'a str,
    operations: usize,
    layers: usize,
}

#[derive(Debug, serde::Serialize)]
struct TransferJson<'a> {
    from: &'a str,
    to: &'a str,
    values: usize,
    bytes_per_token: u64,
}
