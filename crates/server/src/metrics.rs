//! Counts and times for `/metrics`, in the text format of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! They belong to a server, not to the process, and take the same memory however long it runs. That is why they are not
//! kept by the crate `metrics`: its recorder is one for the process, its histograms grow until they are read, and two
//! servers (as in every test here) would share their books.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use engine::Stats;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Answered.
    Ok,
    /// It asked for what cannot be (4xx).
    Refused,
    /// The queue was full (429).
    Busy,
    /// The server failed, or is not ready (5xx).
    Failed,
    /// The client went away.
    Cancelled,
}

impl Outcome {
    const ALL: [Outcome; 5] = [Outcome::Ok, Outcome::Refused, Outcome::Busy, Outcome::Failed, Outcome::Cancelled];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Refused => "refused",
            Outcome::Busy => "busy",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
        }
    }

    pub(crate) fn of_status(status: u16) -> Outcome {
        match status {
            0..400 => Outcome::Ok,
            429 => Outcome::Busy,
            400..500 => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}

/// Times, by upper bounds in seconds.
const LONG: [f64; 14] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const SHORT: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0];

/// A distribution of times.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64; 14],
    /// Values up to each bound and above the one before; the last are those beyond all.
    counts: [AtomicU64; 15],
    sum_ns: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64; 14]) -> Histogram {
        Histogram { bounds, counts: Default::default(), sum_ns: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, seconds: f64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        let at = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }

    fn sum_s(&self) -> f64 {
        self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        head(text, name, help, "histogram");
        let mut below = 0;
        for (bound, count) in self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]).zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            line(text, &format!("{name}_bucket{{le=\"{bound}\"}}"), below);
        }
        line(text, &format!("{name}_sum"), self.sum_s());
        line(text, &format!("{name}_count"), below);
    }
}

/// The counts and times of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// By route, of each outcome. Routes are those of the table, so there are few.
    requests: Mutex<BTreeMap<String, [u64; Outcome::ALL.len()]>>,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) time_per_output_token: Histogram,
    pub(crate) queue_wait: Histogram,
    /// Of answers, from the request on.
    pub(crate) answer_time: Histogram,
    connections: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Mutex::default(),
            time_to_first_token: Histogram::new(&LONG),
            time_per_output_token: Histogram::new(&SHORT),
            queue_wait: Histogram::new(&LONG),
            answer_time: Histogram::new(&LONG),
            connections: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    pub(crate) fn count(&self, route: &str, outcome: Outcome) {
        let mut requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        requests.entry(route.to_owned()).or_default()[outcome as usize] += 1;
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Seconds that an answer takes on average once it has a slot; 1 before the first.
    pub(crate) fn mean_run_s(&self) -> f64 {
        let count: u64 = self.answer_time.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        let ran = self.answer_time.sum_s() - self.queue_wait.sum_s();
        if count == 0 { 1.0 } else { ran.max(0.0) / count as f64 }
    }

    /// Everything, as Prometheus reads it. Without an engine its lines are left out.
    pub(crate) fn render(&self, stats: Option<&Stats>) -> String {
        let mut text = String::new();
        head(&mut text, "unicorn_requests_total", "Requests that ended, by route and outcome.", "counter");
        for (route, counts) in self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter() {
            for (outcome, count) in Outcome::ALL.iter().zip(counts).filter(|(_, count)| **count > 0) {
                let name = format!("unicorn_requests_total{{route=\"{route}\",outcome=\"{}\"}}", outcome.name());
                line(&mut text, &name, count);
            }
        }
        let connections = self.connections.load(Ordering::Relaxed);
        gauge(&mut text, "unicorn_connections", "Connections that are open.", connections as f64);
        for (histogram, name, help) in [
            (
                &self.time_to_first_token,
                "unicorn_time_to_first_token_seconds",
                "From the request to its first token, the wait in the queue included.",
            ),
            (
                &self.time_per_output_token,
                "unicorn_time_per_output_token_seconds",
                "Mean time of a token after the first, by answer.",
            ),
            (&self.queue_wait, "unicorn_queue_wait_seconds", "From the request until a slot was free."),
            (&self.answer_time, "unicorn_answer_seconds", "From the request to the end of an answer."),
        ] {
            histogram.write(&mut text, name, help);
        }
        if let Some(stats) = stats {
            engine(&mut text, stats);
        }
        text
    }
}

/// What the engine's books say.
fn engine(text: &mut String, stats: &Stats) {
    for (name, help, value) in [
        ("unicorn_running", "Sequences that run.", stats.running),
        ("unicorn_waiting", "Sequences that wait for a slot.", stats.waiting),
        ("unicorn_slots", "Sequences that may run at the same time.", stats.slots),
        ("unicorn_batch_size", "Sequences in the last step.", stats.batch),
        ("unicorn_kv_blocks", "Blocks of the KV cache.", stats.kv_blocks),
        ("unicorn_kv_blocks_used", "Blocks that running sequences hold.", stats.kv_blocks_used),
        ("unicorn_kv_blocks_cached", "Blocks that are idle and can be used again.", stats.kv_blocks_cached),
    ] {
        gauge(text, name, help, value as f64);
    }
    for (name, help, value) in [
        ("unicorn_prompt_tokens_total", "Tokens of prompts, cached ones included.", stats.prompt_tokens),
        ("unicorn_prefix_cache_hit_tokens_total", "Tokens of prompts that were in the cache.", stats.cached_tokens),
        ("unicorn_generated_tokens_total", "Tokens generated.", stats.generated_tokens),
        ("unicorn_drafted_tokens_total", "Tokens computed ahead.", stats.drafted_tokens),
        ("unicorn_accepted_tokens_total", "Of those, tokens that were kept.", stats.accepted_tokens),
        ("unicorn_steps_total", "Steps of the engine.", stats.steps),
        ("unicorn_step_rows_total", "Tokens computed in all steps.", stats.step_rows),
        ("unicorn_preemptions_total", "Sequences that gave up their blocks and began again.", stats.preemptions),
        ("unicorn_device_recoveries_total", "Times a device was lost and all sequences began again.", stats.recoveries),
    ] {
        head(text, name, help, "counter");
        line(text, name, value);
    }
}

fn gauge(text: &mut String, name: &str, help: &str, value: f64) {
    head(text, name, help, "gauge");
    line(text, name, value);
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_up_to_each_bound() {
        let metrics = Metrics::default();
        for seconds in [0.0004, 0.001, 0.002, 3.0, 1000.0, f64::NAN, -1.0] {
            metrics.time_to_first_token.record(seconds);
        }
        let text = metrics.render(None);
        for want in [
            "unicorn_time_to_first_token_seconds_bucket{le=\"0.001\"} 2\n",
            "unicorn_time_to_first_token_seconds_bucket{le=\"0.005\"} 3\n",
            "unicorn_time_to_first_token_seconds_bucket{le=\"5\"} 4\n",
            "unicorn_time_to_first_token_seconds_bucket{le=\"120\"} 4\n",
            "unicorn_time_to_first_token_seconds_bucket{le=\"+Inf\"} 5\n",
            "unicorn_time_to_first_token_seconds_count 5\n",
            "unicorn_time_to_first_token_seconds_sum 1003.0034\n",
        ] {
            assert!(text.contains(want), "{want} is not in\n{text}");
        }
        assert!(!text.contains("unicorn_running"));
    }

    #[test]
    fn every_line_has_a_head() {
        let metrics = Metrics::default();
        metrics.count("/v1/models", Outcome::Ok);
        metrics.count("/v1/models", Outcome::Ok);
        metrics.count("/v1/models", Outcome::Cancelled);
        let text = metrics.render(Some(&Stats::default()));
        assert!(text.contains("unicorn_requests_total{route=\"/v1/models\",outcome=\"ok\"} 2\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
        }
    }

    #[test]
    fn outcomes_follow_the_status() {
        for (status, want) in [
            (200, Outcome::Ok),
            (400, Outcome::Refused),
            (404, Outcome::Refused),
            (429, Outcome::Busy),
            (500, Outcome::Failed),
            (503, Outcome::Failed),
        ] {
            assert_eq!(Outcome::of_status(status), want, "{status}");
        }
    }
}
