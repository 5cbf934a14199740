//! The results of a bench as a Markdown table, as CSV and as JSON.

use std::fmt::Write;

use clap::ValueEnum;
use engine::{BenchOptions, BenchReport, BenchResult, Engine, ModelFile};
use serde_json::{Value, json};

use super::compare::{Baseline, Compared, Comparison, Measured, Verdict, compare};
use crate::output::{bytes, gb_per_s, note, one_line, print, print_json};

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A table in Markdown
    #[value(name = "md")]
    Markdown,
    /// A line of names, then a line for each test
    Csv,
    /// One object; --compare reads it
    Json,
}

/// All that is told of a bench.
pub(super) struct Report<'a> {
    engine: &'a Engine,
    file: &'a ModelFile,
    repetitions: usize,
    found: BenchReport,
    comparison: Option<Comparison>,
    notes: Vec<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        file: &'a ModelFile,
        options: &BenchOptions,
        found: BenchReport,
        baseline: Option<&Baseline>,
    ) -> Report<'a> {
        let measured =
            |result: &BenchResult| Measured { test: result.test.clone(), tok_per_s: result.tok_per_s.clone() };
        let now: Vec<Measured> = found.results.iter().map(measured).collect();
        let comparison = baseline.map(|baseline| compare(&now, &baseline.results));
        let repetitions = options.repetitions;
        let mut report = Report { engine, file, repetitions, found, comparison, notes: Vec::new() };
        report.notes = report.all_notes(options, baseline);
        report
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Markdown => print(&self.markdown())?,
            Format::Csv => {
                print(&self.csv())?;
                self.notes.iter().for_each(|text| note(format_args!("note: {text}")));
            }
            Format::Json => print_json(&self.json())?,
        }
        Ok(())
    }

    fn all_notes(&self, options: &BenchOptions, baseline: Option<&Baseline>) -> Vec<String> {
        let mut notes = Vec::new();
        if self.found.interrupted {
            let (done, all) = (self.found.results.len(), options.tests().len());
            notes.push(format!(
                "interrupted: {done} of {all} tests have results, the last perhaps not of all repetitions"
            ));
        }
        if let Some(shape) = self.file.as_shape() {
            let (layers, own) = shape.layers();
            if layers < own {
                notes.push(format!("{layers} of {own} layers were timed; nothing is extrapolated to the others"));
            }
        }
        for result in &self.found.results {
            notes.extend(over_the_roof(&result.test, "the read bandwidth", result.percent_of_bandwidth));
            notes.extend(over_the_roof(&result.test, "the int8 rate", result.percent_of_int8));
        }
        if let (Some(baseline), Some(comparison)) = (baseline, &self.comparison) {
            notes.extend(self.differences(baseline));
            for (tests, what) in [
                (&comparison.not_run, "in the baseline and not run now"),
                (&comparison.not_in_baseline, "not in the baseline"),
            ] {
                if !tests.is_empty() {
                    notes.push(one_line(&format!("{what}: {}", tests.join(", "))));
                }
            }
            if comparison.tests.iter().any(|test| test.verdict == Verdict::NoSpread) {
                notes.push("one repetition tells no spread: a ratio without it may be noise".to_owned());
            }
        }
        notes
    }

    /// What makes the baseline another thing than what was timed now.
    fn differences(&self, baseline: &Baseline) -> Vec<String> {
        let (info, threads) = (self.engine.info(), self.engine.threads());
        let mut notes = Vec::new();
        if baseline.model.name != info.name {
            notes.push(format!("the baseline is of the model {}", one_line(&baseline.model.name)));
        }
        if baseline.devices != self.engine.plan().devices {
            notes.push(format!("the baseline ran on {}", one_line(&baseline.devices.join(", "))));
        }
        if let Some(then) = baseline.threads.filter(|then| Some(*then) != threads) {
            notes.push(format!("the baseline had {then} threads"));
        }
        notes
    }

    fn compared(&self, test: &str) -> Option<&Compared> {
        self.comparison.as_ref()?.tests.iter().find(|compared| compared.test == test)
    }

    /// Model, device, threads and roofs.
    fn head(&self) -> String {
        let isa = self.engine.isa().map(|isa| format!(" ({isa})")).unwrap_or_default();
        let threads = self.engine.threads().map(|threads| format!(", {threads} threads")).unwrap_or_default();
        let roofs = self.found.roofs;
        let read = roofs.read_bytes_per_s.map_or("-".to_owned(), gb_per_s);
        let int8 = roofs.int8_ops_per_s.map_or("-".to_owned(), |rate| format!("{:.0} GOPS", rate / 1e9));
        let (name, devices) = (one_line(&self.engine.info().name), self.engine.plan().devices.join(", "));
        format!("{name} on {devices}{isa}{threads}; measured roofs: read {read}, int8 {int8}")
    }

    fn markdown(&self) -> String {
        let mut names = vec![
            "test",
            "tok/s",
            "least to most",
            "one sequence",
            "bytes/token",
            "GB/s",
            "of bandwidth",
            "GOP/token",
            "GOPS",
            "of int8",
        ];
        if self.comparison.is_some() {
            names.extend(["baseline", "ratio", "beyond the spread"]);
        }
        let mut rows = vec![names.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for result in &self.found.results {
            let mut row = cells(result);
            if self.comparison.is_some() {
                row.extend(compared_cells(self.compared(&result.test)));
            }
            rows.push(row);
        }
        let mut out = format!("{}\n\n{}", self.head(), table(&rows));
        for (index, text) in self.notes.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{}note: {text}", if index == 0 { "\n" } else { "" });
        }
        out
    }

    fn csv(&self) -> String {
        let objects = self.found.results.iter().map(|result| self.csv_fields(result));
        let mut out = String::new();
        for (index, fields) in objects.enumerate() {
            if index == 0 {
                let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
                out += &(names.join(",") + "\n");
            }
            let values: Vec<String> = fields.iter().map(|(_, value)| csv_field(value)).collect();
            out += &(values.join(",") + "\n");
        }
        out
    }

    fn csv_fields(&self, result: &BenchResult) -> Vec<(&'static str, Value)> {
        let roofs = self.found.roofs;
        let mut fields = vec![
            ("model", json!(self.engine.info().name)),
            ("devices", json!(self.engine.plan().devices.join(" "))),
            ("isa", json!(self.engine.isa())),
            ("threads", json!(self.engine.threads())),
            ("test", json!(result.test)),
            ("tokens", json!(result.tokens)),
            ("depth", json!(result.depth)),
            ("batch", json!(result.batch)),
            ("repetitions", json!(result.tok_per_s.len())),
            ("median_tok_per_s", json!(result.median_tok_per_s)),
            ("least_tok_per_s", json!(result.least_tok_per_s)),
            ("most_tok_per_s", json!(result.most_tok_per_s)),
            ("tok_per_s_per_sequence", json!(result.tok_per_s_per_sequence)),
            ("bytes_per_token", json!(result.bytes_per_token)),
            ("bytes_per_s", json!(result.bytes_per_s)),
            ("percent_of_bandwidth", json!(result.percent_of_bandwidth)),
            ("ops_per_token", json!(result.ops_per_token)),
            ("ops_per_s", json!(result.ops_per_s)),
            ("percent_of_int8", json!(result.percent_of_int8)),
            ("read_bytes_per_s", json!(roofs.read_bytes_per_s)),
            ("int8_ops_per_s", json!(roofs.int8_ops_per_s)),
        ];
        if self.comparison.is_some() {
            let compared = self.compared(&result.test);
            fields.extend([
                ("baseline_tok_per_s", json!(compared.map(|compared| compared.baseline_tok_per_s))),
                ("ratio", json!(compared.map(|compared| compared.ratio))),
                ("verdict", json!(compared.map(|compared| compared.verdict))),
            ]);
        }
        fields
    }

    fn json(&self) -> Value {
        let engine = self.engine;
        let shape = self.file.as_shape().map(|shape| {
            let (layers, own_layers) = shape.layers();
            json!({
                "name": shape.name(),
                "layers": layers,
                "layers_of_the_model": own_layers,
                "parameters": shape.parameters(),
            })
        });
        let mut object = json!({
            "results": self.found.results,
            "model": engine.info(),
            "shape": shape,
            "file_bytes": self.file.file_bytes(),
            "devices": engine.plan().devices,
            "isa": engine.isa(),
            "threads": engine.threads(),
            "repetitions": self.repetitions,
            "interrupted": self.found.interrupted,
            "plan": engine.plan().to_json(),
            "read_bytes_per_s": self.found.roofs.read_bytes_per_s,
            "int8_ops_per_s": self.found.roofs.int8_ops_per_s,
            "notes": self.notes,
        });
        if let Some(comparison) = &self.comparison {
            object["comparison"] = json!(comparison);
        }
        object
    }
}

/// A share above the roof is an error of the measurement, and is said to be one.
fn over_the_roof(test: &str, roof: &str, percent: Option<f64>) -> Option<String> {
    let percent = percent.filter(|percent| *percent > 100.0)?;
    Some(format!("{test}: {percent:.0} % of {roof}, over 100 %: the roof was measured too low"))
}

fn cells(result: &BenchResult) -> Vec<String> {
    let none = || "-".to_owned();
    let share = |percent: Option<f64>| {
        percent.map_or_else(none, |percent| format!("{percent:.0} %{}", if percent > 100.0 { " (error)" } else { "" }))
    };
    let reads = result.bytes_per_token > 0.0;
    vec![
        result.test.clone(),
        rate(result.median_tok_per_s),
        format!("{} to {}", rate(result.least_tok_per_s), rate(result.most_tok_per_s)),
        if result.batch > 1 { rate(result.tok_per_s_per_sequence) } else { none() },
        if reads { bytes(result.bytes_per_token as u64) } else { none() },
        if reads { format!("{:.1}", result.bytes_per_s / 1e9) } else { none() },
        share(result.percent_of_bandwidth),
        format!("{:.2}", result.ops_per_token / 1e9),
        format!("{:.0}", result.ops_per_s / 1e9),
        share(result.percent_of_int8),
    ]
}

fn compared_cells(compared: Option<&Compared>) -> Vec<String> {
    let Some(compared) = compared else { return vec!["-".to_owned(); 3] };
    let verdict = match compared.verdict {
        Verdict::Within => "no",
        Verdict::Faster => "faster",
        Verdict::Slower => "slower",
        Verdict::NoSpread => "no spread",
    };
    vec![rate(compared.baseline_tok_per_s), format!("{:.2}", compared.ratio), verdict.to_owned()]
}

/// tok/s with three digits at least.
fn rate(tok_per_s: f64) -> String {
    if tok_per_s < 10.0 { format!("{tok_per_s:.2}") } else { format!("{tok_per_s:.1}") }
}

/// A Markdown table whose columns line up; the first row has the names, the first column stands left.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = if column == 0 { write!(out, "| {cell:<width$} ") } else { write!(out, "| {cell:>width$} ") };
        }
        out += "|\n";
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let line = "-".repeat(*width);
                let _ = if column == 0 { write!(out, "|-{line}-") } else { write!(out, "|-{line}:") };
            }
            out += "|\n";
        }
    }
    out
}

/// A value as CSV has it (RFC 4180): empty where there is none, quoted where a comma or a quote is in it.
fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => {
            let text = one_line(text);
            if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [["test", "tok/s"], ["pp512", "9.00"], ["tg64 b8", "123456.0"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
        let want = "\
| test    |    tok/s |
|---------|---------:|
| pp512   |     9.00 |
| tg64 b8 | 123456.0 |
";
        assert_eq!(table(&rows), want);
    }

    #[test]
    fn csv_fields_are_quoted_where_they_must_be() {
        for (value, want) in [
            (json!(null), ""),
            (json!(1.5), "1.5"),
            (json!("plain @ d4096"), "plain @ d4096"),
            (json!("gemma3-27b:q4_0, 4 of 62 layers"), "\"gemma3-27b:q4_0, 4 of 62 layers\""),
            (json!("a \"b\""), "\"a \"\"b\"\"\""),
            (json!("a\nb"), "a b"),
        ] {
            assert_eq!(csv_field(&value), want, "{value}");
        }
    }

    #[test]
    fn more_than_the_roof_is_an_error_in_words() {
        assert_eq!(over_the_roof("tg64", "the read bandwidth", Some(100.0)), None);
        assert_eq!(over_the_roof("tg64", "the read bandwidth", None), None);
        let text = over_the_roof("tg64", "the read bandwidth", Some(131.4)).unwrap();
        assert_eq!(text, "tg64: 131 % of the read bandwidth, over 100 %: the roof was measured too low");
    }
}
