//! Inputs that are not finite stay so in every product, as they do on the reference: a defect upstream must not turn
//! into plausible numbers.

use std::sync::Arc;

use cpu::{Cpu, CpuOptions};
use graph::{
    Arithmetic, Device, Graph, GraphBuilder, PlanOptions, Span, Step, Weight, conformance::assert_close, plan,
    reference::Reference,
};
use tensor::{DType, blocks::random_blocks};

const COLS: usize = 288;
const ROWS: usize = 20;
/// Rows of activations: every fifth is spoilt.
const ENTRIES: usize = 30;

/// What row `entry` has in one of its columns, where it is not like the others.
fn spoilt(entry: usize) -> Option<f32> {
    (entry % 5 == 2).then(|| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][entry / 5 % 3])
}

/// A product with rows of which some hold one NaN or infinity. `size` is how large the others are.
fn product(dtype: DType, size: f32) -> Arc<Graph> {
    let noise = |i: usize| size * ((i as f32 * 12.9898).sin() * 43_758.547).fract();
    let mut inputs: Vec<f32> = (0..ENTRIES * COLS).map(noise).collect();
    for (entry, row) in inputs.chunks_exact_mut(COLS).enumerate() {
        if let Some(x) = spoilt(entry) {
            row[40 + entry * 7] = x;
        }
    }
    let cols = if dtype.block_len() == 256 { 256 } else { COLS };
    let inputs: Vec<f32> = inputs.chunks_exact(COLS).flat_map(|row| &row[COLS - cols..]).copied().collect();
    let mut b = GraphBuilder::new();
    let table = b.weight(Weight::from_f32("input", ENTRIES, cols, &inputs)).unwrap();
    let data = random_blocks(dtype, ROWS * cols, 3, 0.05).into();
    let w = b.weight(Weight { name: "w".into(), dtype, rows: ROWS, cols, data }).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    let y = b.linear(x, w, None).unwrap();
    let y = b.select_outputs(y).unwrap();
    Arc::new(b.finish(y).unwrap())
}

/// The products of these rows of activations.
fn run(device: &dyn Device, graph: &Arc<Graph>, ids: &[u32], arithmetic: Arithmetic) -> Vec<f32> {
    let options = PlanOptions {
        context: Some(ENTRIES),
        model_context: ENTRIES,
        step_tokens: ENTRIES,
        step_outputs: ENTRIES,
        arithmetic,
        ..PlanOptions::default()
    };
    let plan = plan(graph, &[device], &options).unwrap();
    let mut execution = plan.compile(graph.clone(), &[device], &mut |_, _| ()).unwrap();
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let spans = [Span { rows: 0..ids.len(), past: 0, tables: &[] }];
    execution.run(&Step { ids, positions: &rows, spans: &spans, outputs: &rows }).unwrap().to_vec()
}

fn cpus() -> impl Iterator<Item = Cpu> {
    ["avx512", "avx2", "portable"].into_iter().filter_map(|isa| {
        let device = Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa.to_owned()) });
        if device.is_err() {
            println!("skipped: no {isa} here");
        }
        device.ok()
    })
}

#[test]
fn a_spoilt_row_spoils_its_products_and_no_others() {
    for (cpu, dtype) in cpus().flat_map(|cpu| {
        let cpu = Arc::new(cpu);
        DType::all().filter(|dtype| dtype.is_weight()).map(move |dtype| (cpu.clone(), dtype))
    }) {
        let graph = product(dtype, 1.0);
        let all: Vec<u32> = (0..ENTRIES as u32).collect();
        for (arithmetic, ids) in [Arithmetic::Fast, Arithmetic::F32]
            .into_iter()
            .flat_map(|arithmetic| [&all[..], &all[1..6], &all[2..3]].map(|ids| (arithmetic, ids)))
        {
            let (got, want) = (run(&*cpu, &graph, ids, arithmetic), run(&Reference, &graph, ids, arithmetic));
            for ((id, got), want) in ids.iter().zip(got.chunks_exact(ROWS)).zip(want.chunks_exact(ROWS)) {
                let what = format!("{dtype} {arithmetic:?} on {}, row {id} of {}", cpu.isa(), ids.len());
                if spoilt(*id as usize).is_none() {
                    assert_close(got, want, 2e-2, &what);
                } else {
                    assert!(want.iter().chain(got).all(|x| !x.is_finite()), "{what}: {got:?}, not {want:?}");
                }
            }
        }
    }
}

/// Rows whose sum is beyond `f32` though every element is a number.
#[test]
fn large_rows_are_not_taken_for_spoilt_ones() {
    for cpu in cpus() {
        for dtype in [DType::Q8_0, DType::Q4_0] {
            let graph = product(dtype, 2e37);
            let ids = [0, 1, 3, 4, 5, 6, 8, 9, 10];
            let (got, want) =
                (run(&cpu, &graph, &ids, Arithmetic::Fast), run(&Reference, &graph, &ids, Arithmetic::Fast));
            assert_close(&got, &want, 2e-2, &format!("{dtype} on {}", cpu.isa()));
        }
    }
}
