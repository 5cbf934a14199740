//! Every variant of a kernel that may be chosen computes what the reference does.

use std::{collections::BTreeSet, sync::Arc};

use graph::{
    Activation, Arithmetic, Graph, GraphBuilder, KvType, RopePairs, RopeScaling, RopeTable, ValueId, Weight,
    check::{self, Case},
    reference::Reference,
};
use tensor::{DType, blocks::random_blocks};
use vulkan::{Choices, Variant, Vulkan, VulkanOptions};

mod open;

/// Blocks of 32 columns that no number of blocks ahead divides for every size of subgroup.
const WIDTH: usize = 1280;
const HEAD_DIM: usize = 64;

struct Maker {
    b: GraphBuilder,
    dtype: DType,
    seed: u64,
}

impl Maker {
    fn linear(&mut self, x: ValueId, rows: usize) -> ValueId {
        let cols = self.b.width(x);
        self.seed += 1;
        let data = random_blocks(self.dtype, rows * cols, self.seed, 1.0 / (cols as f32).sqrt());
        let name = format!("matrix {}", self.seed);
        let weight = self.b.weight(Weight { name, dtype: self.dtype, rows, cols, data: data.into() }).unwrap();
        self.b.linear(x, weight, None).unwrap()
    }
}

/// A layer, whose products have rows that no number of rows of a subgroup divides.
fn case(dtype: DType) -> Case {
    let mut m = Maker { b: GraphBuilder::new(), dtype, seed: 0 };
    let norm = m.b.weight(Weight::from_f32("norm", 1, WIDTH, &[0.7; WIDTH])).unwrap();
    let table = m.b.weight(Weight::from_f32("table", 4, WIDTH, &[0.5; 4 * WIDTH])).unwrap();
    let rope = Arc::new(RopeTable::new(HEAD_DIM, 1e4, &RopeScaling::None, RopePairs::Halves).unwrap());
    let x = m.b.embed(table, 1.0).unwrap();
    let h = m.b.rms_norm(x, Some(norm), WIDTH, 1e-6, 0.0).unwrap();
    let [q, k, v] = [4 * HEAD_DIM, HEAD_DIM, HEAD_DIM].map(|rows| m.linear(h, rows));
    let [q, k] = [q, k].map(|x| m.b.rope(x, HEAD_DIM, rope.clone()).unwrap());
    let cache = m.b.cache(1, HEAD_DIM, None).unwrap();
    m.b.kv_write(cache, k, v).unwrap();
    let a = m.b.attention(cache, q, 0.125, None).unwrap();
    let a = m.linear(a, WIDTH);
    let x = m.b.add(x, a).unwrap();
    let h = m.b.rms_norm(x, Some(norm), WIDTH, 1e-6, 0.0).unwrap();
    let [gate, up] = [(); 2].map(|()| m.linear(h, 259));
    let gate = m.b.activate(gate, Activation::Silu).unwrap();
    let h = m.b.mul(gate, up).unwrap();
    let logits = m.b.select_outputs(h).unwrap();
    let graph: Graph = m.b.finish(logits).unwrap();
    check::cases(&graph).remove(0)
}

fn opened(without: &[&str]) -> Option<Vulkan> {
    let without = without.iter().map(|name| (*name).to_owned()).collect();
    open::open_with(VulkanOptions { without, profile: true, ..VulkanOptions::default() })
}

/// Runs all variants with so many sequences that decode, or prompts of so many tokens. Returns those that ran.
fn run_all(device: &Vulkan, dtype: DType, decoded: &[usize], prompts: &[usize]) -> BTreeSet<Variant> {
    let case = case(dtype);
    let most = prompts.iter().copied().max().unwrap_or(1);
    let mut trusted = case.trial(&Reference, Arithmetic::F32, KvType::F32, most).unwrap().expect("supports everything");
    let mut tested = case.trial(device, Arithmetic::Fast, KvType::F16, most).unwrap().expect("supports everything");
    let steps = decoded.iter().map(|count| (*count, false)).chain(prompts.iter().map(|tokens| (*tokens, true)));
    let mut met = BTreeSet::new();
    for (count, is_prompt) in steps {
        let want = if is_prompt { trusted.prompt(count) } else { trusted.decode(count) }.unwrap().to_vec();
        let mut place = 0;
        loop {
            device.try_variant(Some(place));
            let got = if is_prompt { tested.prompt(count) } else { tested.decode(count) }.unwrap().to_vec();
            let ran: Vec<(String, Variant)> = device.profile().into_iter().filter_map(|time| time.choice).collect();
            let compared = tested.compare(&got, &want, count);
            compared.unwrap_or_else(|error| panic!("{dtype}, {count} rows, {ran:?}: {error}"));
            met.extend(ran.into_iter().map(|(_, variant)| variant));
            place += 1;
            if place >= device.variants() {
                break;
            }
        }
        device.try_variant(None);
    }
    met
}

#[test]
fn products_with_few_rows() {
    let Some(device) = opened(&["cooperative-matrix"]) else { return };
    let met = run_all(&device, DType::Q4_0, &[1, 4, 8, 16], &[]);
    for subgroups in [4, 8] {
        for (rows, ahead) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)] {
            let variant = Variant::Rows { rows, ahead, subgroups, resident: 0 };
            assert!(met.contains(&variant), "{variant}: {met:?}");
        }
    }
    // Of kernels that make their row.
    for subgroups in [16, 32] {
        for resident in [0, 32, 64] {
            let variant = Variant::Rows { rows: 1, ahead: 1, subgroups, resident };
            assert!(met.contains(&variant), "{variant}: {met:?}");
        }
    }
    run_all(&device, DType::Q6_K, &[2], &[]);
    assert_eq!(vulkan::validation_complaints(), 0, "the validation layer complained: see above");
}

#[test]
fn products_with_few_rows_in_floats() {
    let Some(device) = opened(&["cooperative-matrix", "integer-dot"]) else { return };
    run_all(&device, DType::Q4_0, &[6], &[]);
    run_all(&device, DType::F16, &[1], &[]);
}

#[test]
fn tiles_on_matrix_units() {
    let Some(device) = opened(&[]) else { return };
    if device.capabilities().cooperative_matrix.is_none() {
        println!("skipped: {} has no matrix units", device.capabilities().name);
        return;
    }
    run_all(&device, DType::Q4_0, &[], &[70, 130, 512]);
}

#[test]
fn what_is_chosen_runs_where_it_is_valid() {
    let Some(device) = opened(&["cooperative-matrix"]) else { return };
    let case = case(DType::Q4_0);
    let mut trial = case.trial(&device, Arithmetic::Fast, KvType::F16, 16).unwrap().expect("supports everything");
    let ids = (device.build_id(), device.kernels_id());
    assert_eq!(ids.0, ids.1);
    let mut run = || -> Choices {
        trial.decode(1).unwrap();
        device.profile().into_iter().filter_map(|time| time.choice).collect()
    };
    let rule = run();
    assert!(!rule.is_empty());
    let other = |variant: &Variant| match variant {
        Variant::Rows { rows: 1, .. } => Variant::Rows { rows: 2, ahead: 1, subgroups: 16, resident: 64 },
        _ => Variant::Rows { rows: 1, ahead: 1, subgroups: 16, resident: 0 },
    };
    // Sixteen subgroups are those of kernels that norm their input, and of no others.
    let chosen: Choices = rule.iter().map(|(kernel, variant)| (kernel.clone(), other(variant))).collect();
    device.choose(chosen.clone());
    assert_ne!(device.kernels_id(), device.build_id(), "what was chosen is checked anew");
    for (kernel, variant) in run() {
        let want = if kernel.contains("normed") { chosen[&kernel] } else { rule[&kernel] };
        assert_eq!(variant, want, "{kernel}");
    }
    let absurd = Variant::Rows { rows: u32::MAX, ahead: 0, subgroups: 0, resident: 0 };
    device.choose(rule.keys().map(|kernel| (kernel.clone(), absurd)).collect());
    assert_eq!(run(), rule);
    device.choose(Choices::default());
    assert_eq!((run(), device.kernels_id()), (rule, device.build_id()));
}
