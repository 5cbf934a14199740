//! Activations with a few channels much larger than the rest, as language models have them: remainders keep the
//! other elements of their groups.

use std::sync::Arc;

use cpu::{Cpu, CpuOptions};
use graph::{
    Device, Graph, GraphBuilder, PlanOptions, Span, Step, Weight, conformance::assert_close, plan, reference::Reference,
};
use tensor::{DType, blocks};

const COLS: usize = 256;
const ROWS: usize = 40;
const ENTRIES: usize = 30;
/// The channels that are large, and how large.
const LARGE: [(usize, f32); 3] = [(5, 80.0), (77, -250.0), (255, 40.0)];

/// A product whose weights are zero in the large channels: what is left is what 8 bits alone would lose.
fn graph(dtype: DType) -> Arc<Graph> {
    let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
    let mut weights: Vec<f32> = (0..ROWS * COLS).map(noise).collect();
    for row in weights.chunks_exact_mut(COLS) {
        LARGE.iter().for_each(|(channel, _)| row[*channel] = 0.0);
    }
    let mut data = vec![0; dtype.row_bytes(ROWS * COLS).unwrap()];
    blocks::quantize(dtype, &weights, &mut data).unwrap();
    let mut inputs: Vec<f32> = (0..ENTRIES * COLS).map(|i| noise(i + 7)).collect();
    // Not in every row: rows share a block with others that have none.
    for row in inputs.chunks_exact_mut(COLS).step_by(2) {
        LARGE.iter().for_each(|(channel, size)| row[*channel] = *size);
    }
    let mut b = GraphBuilder::new();
    let table = b.weight(Weight::from_f32("input", ENTRIES, COLS, &inputs)).unwrap();
    let w = b.weight(Weight { name: "w".into(), dtype, rows: ROWS, cols: COLS, data: data.into() }).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    let y = b.linear(x, w, None).unwrap();
    let y = b.select_outputs(y).unwrap();
    Arc::new(b.finish(y).unwrap())
}

fn run(device: &dyn Device, graph: &Arc<Graph>, tokens: usize) -> Vec<f32> {
    let options = PlanOptions {
        context: Some(tokens),
        model_context: tokens,
        step_tokens: tokens,
        step_outputs: tokens,
        ..PlanOptions::default()
    };
    let plan = plan(graph, &[device], &options).unwrap();
    let mut execution = plan.compile(graph.clone(), &[device], &mut |_, _| ()).unwrap();
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let spans = [Span { rows: 0..tokens, past: 0, tables: &[] }];
    execution.run(&Step { ids: &ids, positions: &ids, spans: &spans, outputs: &ids }).unwrap().to_vec()
}

#[test]
fn elements_beside_an_outlier_keep_their_precision() {
    for isa in ["avx512", "avx2", "portable"] {
        let Ok(cpu) = Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa.to_owned()) }) else {
            println!("skipped: no {isa} here");
            continue;
        };
        // Q8_0 and the types with a zero point represent the zeros exactly; Q4_1's minimum does not.
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q5_0] {
            let graph = graph(dtype);
            for tokens in [1, 3, 12, 13, 30] {
                let (got, want) = (run(&cpu, &graph, tokens), run(&Reference, &graph, tokens));
                // 8 bits for a group with an element of 250 err by up to 1 in elements below 1.
                assert_close(&got, &want, 1e-2, &format!("{dtype} on {isa}, {tokens} rows"));
            }
        }
    }
}
