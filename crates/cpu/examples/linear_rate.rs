//! Rates of products by type and number of rows: operations a second in prefill, bytes a second in decoding.
//!
//! `cargo run --release -p cpu --example linear_rate -- [OUT] [IN] [THREADS]`

use std::{sync::Arc, time::Instant};

use graph::{Device, GraphBuilder, PlanOptions, Span, Step, Weight, plan};
use tensor::{DType, blocks::random_blocks};

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("a number"));
    let (rows, cols) = (args.next().unwrap_or(8960), args.next().unwrap_or(1536));
    let threads = args.next();
    let cpu = cpu::Cpu::new(cpu::CpuOptions { threads, isa: None }).expect("a CPU");
    let rates = cpu.measure();
    let (roof, int8) = (rates.read_bytes_per_s, rates.int8_ops_per_s.unwrap_or(f64::NAN));
    println!(
        "{} threads, {}, read bandwidth {:.1} GB/s, int8 {:.0} GOPS, weights {rows} x {cols}",
        cpu.threads(),
        cpu.isa(),
        roof / 1e9,
        int8 / 1e9
    );
    println!("{:<8} {:>6} {:>10} {:>10} {:>7} {:>10} {:>7}", "type", "rows", "us", "GOPS", "% int8", "GB/s", "% read");
    for dtype in [
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q8_0,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::IQ4_XS,
        DType::BF16,
        DType::F32,
    ] {
        for tokens in [1, 4, 16, 512] {
            let (seconds, bytes) = time(&cpu, dtype, rows, cols, tokens);
            let gops = 2.0 * (rows * cols * tokens) as f64 / seconds / 1e9;
            let rate = bytes as f64 / seconds;
            println!(
                "{:<8} {tokens:>6} {:>10.1} {gops:>10.1} {:>7.1} {:>10.2} {:>7.1}",
                dtype.name(),
                seconds * 1e6,
                100e9 * gops / int8,
                rate / 1e9,
                100.0 * rate / roof
            );
        }
    }
}

/// Seconds a product, the median of several steps, and the bytes of its packed weights. Several copies of the weight
/// are multiplied in turn, so that none stays in a cache.
fn time(cpu: &cpu::Cpu, dtype: DType, rows: usize, cols: usize, tokens: usize) -> (f64, u64) {
    let copies = (128 << 20) / dtype.row_bytes(rows * cols).expect("whole blocks") + 1;
    let copies = if tokens > 16 { 4 } else { copies };
    let mut b = GraphBuilder::new();
    // An outlier in one of twenty groups of 32, as language models have them.
    let element = |i: usize| (i as f32).sin() * if i % 640 == 77 { 40.0 } else { 1.0 };
    let input: Vec<f32> = (0..2 * cols).map(element).collect();
    let table = b.weight(Weight::from_f32("input", 2, cols, &input)).expect("a table");
    let x = b.embed(table, 1.0).expect("a table");
    let mut out = None;
    for copy in 0..copies {
        let data = random_blocks(dtype, rows * cols, copy as u64, 0.02).into();
        let w = b.weight(Weight { name: "w".into(), dtype, rows, cols, data }).expect("a weight");
        out = Some(b.linear(x, w, None).expect("the shapes fit"));
    }
    let out = b.select_outputs(out.expect("a product")).expect("rows");
    let graph = Arc::new(b.finish(out).expect("a graph"));
    let options =
        PlanOptions { context: Some(tokens), model_context: tokens, step_tokens: tokens, ..PlanOptions::default() };
    let plan = plan(&graph, &[cpu as &dyn Device], &options).expect("a plan");
    let bytes = plan.bytes[0].weights_total();
    let mut run = plan.compile(graph, &[cpu], &mut |_, _| ()).expect("it compiles");
    let (ids, positions): (Vec<u32>, Vec<u32>) = (0..tokens as u32).map(|i| (i % 2, i)).unzip();
    let spans = [Span { rows: 0..tokens, past: 0, tables: &[] }];
    let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs: &[tokens as u32 - 1] };
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let start = Instant::now();
            run.run(&step).expect("it runs");
            start.elapsed().as_secs_f64() / copies as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[3], bytes / copies as u64)
}
