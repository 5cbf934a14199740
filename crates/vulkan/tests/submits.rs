//! Steps cut into many submits compute what one submit does, to the bit; a device that is lost between two of them says
//! so, and what was at work is waited for.

use std::{sync::Arc, time::Duration};

use graph::{
    Activation, Arithmetic, Device, DeviceError, Execution, Graph, GraphBuilder, PlanOptions, RopePairs, RopeScaling,
    RopeTable, RunError, Span, Step, ValueId, Weight,
};
use tensor::{DType, blocks::random_blocks};
use vulkan::{Vulkan, VulkanOptions};

mod open;

const WIDTH: usize = 256;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 96;
const CONTEXT: usize = 192;

fn linear(b: &mut GraphBuilder, x: ValueId, rows: usize, seed: u64) -> ValueId {
    let cols = b.width(x);
    let data = random_blocks(DType::Q4_0, rows * cols, seed, 1.0 / (cols as f32).sqrt());
    let weight = Weight { name: format!("matrix {seed}"), dtype: DType::Q4_0, rows, cols, data: data.into() };
    let weight = b.weight(weight).unwrap();
    b.linear(x, weight, None).unwrap()
}

/// Two layers and a head.
fn graph() -> Graph {
    let mut b = GraphBuilder::new();
    let values: Vec<f32> = (0..VOCAB * WIDTH).map(|i| ((i * 37 + 11) % 101) as f32 / 101.0 - 0.5).collect();
    let table = b.weight(Weight::from_f32("table", VOCAB, WIDTH, &values)).unwrap();
    let rope = Arc::new(RopeTable::new(HEAD_DIM, 1e4, &RopeScaling::None, RopePairs::Halves).unwrap());
    let mut x = b.embed(table, 1.0).unwrap();
    for layer in 0..2 {
        let seed = 10 * layer;
        let norm = b.weight(Weight::from_f32("norm", 1, WIDTH, &[0.7; WIDTH])).unwrap();
        let h = b.rms_norm(x, Some(norm), WIDTH, 1e-6, 0.0).unwrap();
        let q = linear(&mut b, h, 4 * HEAD_DIM, seed + 1);
        let [k, v] = [2, 3].map(|at| linear(&mut b, h, 2 * HEAD_DIM, seed + at));
        let [q, k] = [q, k].map(|x| b.rope(x, HEAD_DIM, rope.clone()).unwrap());
        let cache = b.cache(2, HEAD_DIM, None).unwrap();
        b.kv_write(cache, k, v).unwrap();
        let a = b.attention(cache, q, 0.125, None).unwrap();
        let a = linear(&mut b, a, WIDTH, seed + 4);
        x = b.add(x, a).unwrap();
        let h = b.rms_norm(x, Some(norm), WIDTH, 1e-6, 0.0).unwrap();
        let [gate, up] = [5, 6].map(|at| linear(&mut b, h, 2 * WIDTH, seed + at));
        let gate = b.activate(gate, Activation::Silu).unwrap();
        let h = b.mul(gate, up).unwrap();
        let h = linear(&mut b, h, WIDTH, seed + 7);
        x = b.add(x, h).unwrap();
    }
    let x = b.select_outputs(x).unwrap();
    let logits = linear(&mut b, x, VOCAB, 99);
    b.finish(logits).unwrap()
}

/// A prompt of 130 tokens and two that are decoded: their logits, and the submits of each.
fn steps(device: &Vulkan, execution: &mut Execution) -> Result<Vec<(Vec<f32>, u64)>, RunError> {
    let table: Vec<Vec<u32>> = vec![(0..CONTEXT as u32 / 32).rev().collect()];
    let mut past = 0;
    let mut found = Vec::new();
    for tokens in [130, 1, 1] {
        let ids: Vec<u32> = (past..past + tokens).map(|i| (i * 7 + 3) as u32 % VOCAB as u32).collect();
        let positions: Vec<u32> = (past as u32..(past + tokens) as u32).collect();
        let outputs = [0, tokens as u32 - 1];
        let outputs = &outputs[usize::from(tokens == 1)..];
        let before = device.submits();
        let spans = [Span { rows: 0..tokens, past, tables: &table }];
        let logits = execution.run(&Step { ids: &ids, positions: &positions, spans: &spans, outputs })?.to_vec();
        found.push((logits, device.submits() - before));
        past += tokens;
    }
    Ok(found)
}

fn compile(device: &Vulkan, arithmetic: Arithmetic) -> Execution {
    let graph = Arc::new(graph());
    let options = PlanOptions {
        context: Some(CONTEXT),
        model_context: CONTEXT,
        step_tokens: 130,
        step_outputs: 2,
        arithmetic,
        ..PlanOptions::default()
    };
    let plan = graph::plan(&graph, &[device as &dyn Device], &options).unwrap();
    plan.compile(graph, &[device as &dyn Device], &mut |_, _| ()).unwrap()
}

fn opened(bound: Duration) -> Option<Vulkan> {
    open::open_with(VulkanOptions { submit_bound: Some(bound), ..VulkanOptions::default() })
}

#[test]
fn many_submits_compute_what_one_does() {
    let Some(whole) = opened(Duration::ZERO) else { return };
    let cut = opened(Duration::from_nanos(1)).expect("opened before");
    for arithmetic in [Arithmetic::Fast, Arithmetic::F32] {
        let want = steps(&whole, &mut compile(&whole, arithmetic)).unwrap();
        let got = steps(&cut, &mut compile(&cut, arithmetic)).unwrap();
        for (step, ((want, one), (got, many))) in want.iter().zip(&got).enumerate() {
            assert_eq!(*one, 1, "step {step}");
            // A kernel is a submit, and those of the prompt that can be divided are several.
            assert!(*many >= if step == 0 { 30 } else { 10 }, "step {step}: {many} submits");
            assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|x| *x != 0.0), "step {step}");
            assert_eq!(got, want, "step {step}, {arithmetic:?}");
        }
    }
    assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
}

#[test]
fn a_loss_between_two_submits_is_reported() {
    let Some(device) = opened(Duration::from_nanos(1)) else { return };
    for after in [0, 1, 7] {
        let device = if after == 0 { &device } else { &opened(Duration::from_nanos(1)).expect("opened before") };
        let mut execution = compile(device, Arithmetic::Fast);
        device.lose_after(after);
        let error = steps(device, &mut execution).unwrap_err();
        assert!(matches!(error, RunError::Device(DeviceError::Lost { .. })), "{error}");
    }
    assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
}
