//! How long steps take, estimated before anything runs: bytes over a bandwidth, operations over a rate, whichever is
//! longer. An estimate leaves out what starting kernels costs and what they do badly; where a rate is a roof it says so.

use std::fmt;

use crate::{
    device::{Arithmetic, KvType, Rates},
    graph::{Graph, Rows},
    op::Op,
    plan::{DeviceBytes, Plan},
    report::bytes_text,
};

/// Tokens in the context of the sequence that decodes.
const DEPTH: usize = 512;

/// What a device's share of a step computes and reads, beside its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Operations of products that each token passes; a multiply-add is two.
    token_ops: u64,
    /// Of those that only rows with wanted logits pass.
    output_ops: u64,
    /// Of each attention its window, and for every token that a row sees the operations and the bytes of the cache.
    attention: Vec<(Option<usize>, u64, u64)>,
}

impl Work {
    /// That of the nodes for which `is_own` holds.
    pub(crate) fn of(graph: &Graph, kv: KvType, is_own: impl Fn(usize) -> bool) -> Work {
        let mut work = Work::default();
        for (_, node) in graph.nodes().iter().enumerate().filter(|(index, _)| is_own(*index)) {
            match &node.op {
                Op::Linear { x, weight, .. } => {
                    let matrix = graph.weight(*weight);
                    let ops = 2 * matrix.rows as u64 * matrix.cols as u64;
                    match graph.value(*x).rows {
                        Rows::Tokens => work.token_ops += ops,
                        Rows::Outputs => work.output_ops += ops,
                    }
                }
                // Scores and the weighted sum of values: a multiply-add each for every element of the query.
                Op::Attention { cache, q, .. } => {
                    let cache = graph.cache(*cache);
                    work.attention.push((cache.window, 4 * graph.value(*q).width as u64, cache.token_bytes(kv)));
                }
                _ => {}
            }
        }
        work
    }

    /// Operations, and bytes of caches, of a step that takes one sequence from `past` tokens to `past + rows`.
    fn step(&self, past: usize, rows: usize) -> (u64, u64) {
        let (mut ops, mut bytes) = (self.token_ops * rows as u64 + self.output_ops, 0);
        for (window, own_ops, own_bytes) in &self.attention {
            let seen = |len: usize| window.map_or(len, |window| window.min(len)) as u64;
            ops += own_ops * (past + 1..=past + rows).map(seen).sum::<u64>();
            // Rows of a step share what they read.
            bytes += own_bytes * seen(past + rows).max(rows as u64);
        }
        (ops, bytes)
    }
}

/// What is expected of a plan.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// Tokens in the context of the sequence that decodes.
    pub context: usize,
    /// Tokens of the prompt, which begins an empty context.
    pub prompt_tokens: usize,
    /// Each device that runs anything.
    pub devices: Vec<DeviceEstimate>,
    /// What crosses between devices; `None` where nothing does.
    pub transfers: Option<StepTimes>,
    /// All together: devices run one after another. Unknown where one of them is.
    pub total: StepTimes,
}

/// Seconds of a step; `None` where a rate is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct StepTimes {
    /// Of a token that one sequence decodes.
    pub decode_s: Option<f64>,
    /// Of the prompt.
    pub prompt_s: Option<f64>,
}

/// What is expected of a device's share.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DeviceEstimate {
    /// The device.
    pub device: String,
    /// Bytes that a token reads.
    pub decode_bytes: u64,
    /// Operations of the prompt.
    pub prompt_ops: u64,
    /// The seconds.
    #[serde(flatten)]
    pub times: StepTimes,
    /// What they were computed with.
    pub read_bytes_per_s: Option<f64>,
    /// As above.
    pub ops_per_s: Option<f64>,
    /// Whether `ops_per_s` is what instructions reach and kernels at most, and not what a kernel was measured to reach.
    pub ops_are_roof: bool,
}

impl Plan {
    /// What is expected of it, by the rates that are known of its devices.
    pub fn estimate(&self) -> Estimate {
        let prompt_tokens = self.limits.tokens;
        let context = DEPTH.min(self.limits.context - 1);
        let used = self.used_devices();
        let own = |device: &DeviceBytes| self.device_estimate(device, context);
        let devices: Vec<DeviceEstimate> =
            self.bytes.iter().filter(|device| used.contains(&&*device.device)).map(own).collect();
        let transfers = (!self.transfers.is_empty()).then(|| self.transfer_times());
        let times = || devices.iter().map(|device| device.times).chain(transfers);
        let total = StepTimes {
            decode_s: times().map(|times| times.decode_s).sum(),
            prompt_s: times().map(|times| times.prompt_s).sum(),
        };
        Estimate { context, prompt_tokens, devices, transfers, total }
    }

    fn device_estimate(&self, device: &DeviceBytes, context: usize) -> DeviceEstimate {
        let rates = device.rates.unwrap_or_default();
        let known = |rate: f64| (rate > 0.0).then_some(rate);
        let read_bytes_per_s = known(rates.read_bytes_per_s);
        // Of floats nothing was measured.
        let (ops_per_s, ops_are_roof) = match (self.arithmetic, rates) {
            (Arithmetic::F32, _) => (None, false),
            (Arithmetic::Fast, Rates { product_ops_per_s: Some(rate), .. }) => (known(rate), false),
            (Arithmetic::Fast, rates) => (rates.int8_ops_per_s.and_then(known), true),
        };
        let seconds = |(ops, bytes): (u64, u64), needs_ops: bool| {
            let reading = (device.read_per_token + bytes) as f64 / read_bytes_per_s?;
            let computing = ops_per_s.map(|rate| ops as f64 / rate);
            if needs_ops { Some(reading.max(computing?)) } else { Some(reading.max(computing.unwrap_or(0.0))) }
        };
        let (decode, prompt) = (device.work.step(context, 1), device.work.step(0, self.limits.tokens));
        DeviceEstimate {
            device: device.device.clone(),
            decode_bytes: device.read_per_token + decode.1,
            prompt_ops: prompt.0,
            // A token is bound by what it reads, on all that is known.
            times: StepTimes { decode_s: seconds(decode, false), prompt_s: seconds(prompt, true) },
            read_bytes_per_s,
            ops_per_s,
            ops_are_roof,
        }
    }

    /// What crosses at the rate of the slower of two devices; the processor's own memory costs nothing.
    fn transfer_times(&self) -> StepTimes {
        let seconds = |rows: u64| {
            let each = |transfer: &crate::Transfer| {
                let bytes = (transfer.bytes_per_row * rows) as f64;
                let rates = [transfer.from, transfer.to].map(|device| self.bytes[device].rates);
                let rates = rates.map(|rates| rates.map(|rates| rates.transfer_bytes_per_s));
                // Both must be known; a device that computes in host memory has no such rate.
                match rates {
                    [Some(a), Some(b)] => Some(bytes / a.unwrap_or(f64::INFINITY).min(b.unwrap_or(f64::INFINITY))),
                    _ => None,
                }
            };
            self.transfers.iter().map(each).sum()
        };
        StepTimes { decode_s: seconds(1), prompt_s: seconds(self.limits.tokens as u64) }
    }
}

/// Seconds for a person.
fn seconds_text(seconds: f64) -> String {
    match seconds {
        s if s < 0.01 => format!("{:.2} ms", s * 1e3),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Estimate { context, prompt_tokens, .. } = self;
        for device in &self.devices {
            let name = &device.device;
            let Some((rate, decode_s)) = device.read_bytes_per_s.zip(device.times.decode_s) else {
                writeln!(f, "estimate: none for {name}, whose rates are not known")?;
                continue;
            };
            let (bytes, rate) = (bytes_text(device.decode_bytes), rate / 1e9);
            let at_least = seconds_text(decode_s);
            writeln!(
                f,
                "estimate: {name} decodes a token in {at_least} at least ({context} in the context: {bytes} at {rate:.1} \
                 GB/s, measured now)"
            )?;
            match device.ops_per_s.zip(device.times.prompt_s) {
                Some((rate, prompt_s)) => {
                    let (tops, rate, time) = (device.prompt_ops as f64 / 1e12, rate / 1e12, seconds_text(prompt_s));
                    let (takes, of) = match device.ops_are_roof {
                        true => (format!("takes {time} at least"), "what its instructions reach"),
                        false => (format!("takes about {time}"), "what a product of its own reaches"),
                    };
                    writeln!(
                        f,
                        "estimate: {name} {takes} for a prompt of {prompt_tokens} ({tops:.2} Tops at {rate:.2} Tops/s, \
                         {of}, measured now)"
                    )?;
                }
                None => writeln!(f, "estimate: none for a prompt on {name}: the rate of its products is not known")?,
            }
        }
        let Some(transfers) = &self.transfers else { return self.total_line(f) };
        match transfers.decode_s.zip(transfers.prompt_s) {
            Some((decode_s, prompt_s)) => {
                let (decode, prompt) = (seconds_text(decode_s), seconds_text(prompt_s));
                writeln!(f, "estimate: transfers take {decode} a token, {prompt} a prompt (by their bytes alone)")?;
            }
            None => writeln!(f, "estimate: none for transfers, whose rate is not known")?,
        }
        self.total_line(f)
    }
}

impl Estimate {
    fn total_line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(seconds) = self.total.decode_s.filter(|seconds| *seconds > 0.0) {
            parts.push(format!("decoding one sequence cannot exceed {:.1} tok/s", 1.0 / seconds));
        }
        if let Some(seconds) = self.total.prompt_s.filter(|seconds| *seconds > 0.0) {
            parts.push(format!("a prompt at most about {:.0} tok/s", self.prompt_tokens as f64 / seconds));
        }
        if parts.is_empty() { Ok(()) } else { writeln!(f, "estimate: {}", parts.join(", ")) }
    }
}
